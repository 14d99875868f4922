"""Fine-tune the last k layers on the retain set and hope that the rest is forgotten (CF-k, Goel et al., 2201.06640).

Minimises CE(retain) over the parameters of the last k layers; all others, and the running statistics of their batch
norms, stay as they are. A layer is a module with trainable parameters of its own that are not tied to an earlier one,
norms included. The published code counts convolutions and linear layers only, and lets the norms between them train
along.

Cost: one gradient per retain example and epoch (of which the backward pass through the frozen layers is spared).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from expunge.core.job import Job
from expunge.methods._layers import LastLayers


@dataclass(frozen=True)
class CFk(LastLayers):
    """Catastrophic forgetting of the last k layers."""

    cite: ClassVar[str] = "goel2022adversarial"
    paper: ClassVar[str] = "CF-k, 2022"
    effort: ClassVar[str] = "R E"

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Train the last layers on."""
        return self.train_last(student, job)
