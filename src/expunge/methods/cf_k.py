"""Fine-tune the last k layers on the retain set; forgetting is only a side effect (CF-k, Goel et al., 2201.06640).

Minimises CE(retain) over the parameters of the last k layers. All other layers, and the running statistics of their
batch norms, do not change. A layer is a module with its own trainable parameters that are not tied to an earlier layer;
norms count as layers. The published code counts only convolutions and linear layers, and also trains the norms between
them.

Cost: one gradient per retain example and epoch (without the backward pass through the frozen layers).
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
        """Continue to train the last layers."""
        return self.train_last(student, job)
