"""A model that was unlearned elsewhere: its weights come from a file and are attacked and judged.

Nothing is trained. The file must hold weights of the spec's own architecture: as safetensors, or a state dict that
`torch.save` wrote. Only tensors are read from it.

Cost: none here; what it cost elsewhere is not known.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import nn

from expunge.core import checkpoint
from expunge.core.job import Job
from expunge.core.method import Method


@dataclass(frozen=True)
class Checkpoint(Method):
    """Weights from a file instead of an unlearning method."""

    paths: ClassVar[tuple[str, ...]] = ("path",)
    effort: ClassVar[str] = "unknown"
    priced: ClassVar[bool] = False
    repeatable: ClassVar[bool] = False

    path: str
    """The file, safetensors or `torch.save` of a state dict; a relative path starts at the spec file's folder."""

    def expected_gradients(self, retain: int, forget: int) -> float:
        """None: nothing is trained."""
        return 0

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Load the weights into the copy of the model.

        Raises:
            SpecError: The file is missing, is truncated, or holds more than tensors or weights of another architecture.
        """
        return checkpoint.load(student, Path(self.path), where="method.path")
