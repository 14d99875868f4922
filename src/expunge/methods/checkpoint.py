"""A model that was unlearned elsewhere: its weights come from a safetensors file and are attacked and judged.

Nothing is trained. The file must hold weights of the spec's own architecture; a pickle is refused.

Cost: none here; what it cost elsewhere is not known.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import nn

from expunge.base.reading import require_file
from expunge.core import checkpoint
from expunge.core.job import Job
from expunge.core.method import Method
from expunge.core.problem import Problem


@dataclass(frozen=True)
class Checkpoint(Method):
    """Weights from a file instead of an unlearning method."""

    paths: ClassVar[tuple[str, ...]] = ("path",)
    effort: ClassVar[str] = "unknown"
    priced: ClassVar[bool] = False
    repeatable: ClassVar[bool] = False

    path: str
    """The safetensors file; a relative path starts at the spec file's folder."""

    def expected_gradients(self, retain: int, forget: int) -> float:
        """None: nothing is trained."""
        return 0

    def check(self, problem: Problem) -> None:
        """Refuse, before anything is trained, a file that cannot be read.

        Raises:
            SpecError: There is no such file, or it cannot be read.
        """
        require_file(Path(self.path), where="method.path")

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Load the weights into the copy of the model.

        Raises:
            SpecError: The file is missing, is a pickle, is truncated, or holds weights of another architecture.
        """
        return checkpoint.load(student, Path(self.path), where="method.path")
