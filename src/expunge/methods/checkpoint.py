"""A model that was unlearned elsewhere: its weights from a safetensors file, to be attacked and judged like any other.

Nothing is trained. The file must hold weights of the spec's own architecture; a pickle is refused.

Cost: none here; what it cost elsewhere is not known.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import nn

from expunge.core import checkpoint
from expunge.core.contracts import Method
from expunge.core.job import Job


@dataclass(frozen=True)
class Checkpoint(Method):
    """Weights from a file in the place of an unlearning method."""

    paths: ClassVar[tuple[str, ...]] = ("path",)
    effort: ClassVar[str] = "unknown"
    priced: ClassVar[bool] = False
    repeatable: ClassVar[bool] = False

    path: str
    """The safetensors file; a relative path counts from the spec file."""

    def expected_gradients(self, retain: int, forget: int) -> float:
        """None: nothing is trained."""
        return 0

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Load the weights into the copy of the model.

        Raises:
            SpecError: The file is missing, a pickle, truncated, or of another architecture.
        """
        return checkpoint.load(student, Path(self.path), where="method.path")
