"""Give the last k layers fresh initial values and train them on the retain set (EU-k, Goel et al., 2201.06640).

Minimises CE(retain) over the parameters of the last k layers, from new initial values; all others, and the running
statistics of their batch norms, stay as they are. A layer is a module with trainable parameters of its own that are not
tied to an earlier one, norms included; its `reset_parameters` gives the values, and frozen parameters in it are kept.
The published code counts convolutions and linear layers only, and leaves the norms between them at their old values but
lets them train along.

Cost: one gradient per retain example and epoch (of which the backward pass through the frozen layers is spared).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from expunge.base.part import Positive
from expunge.base.seeds import derive
from expunge.core.job import Job
from expunge.methods._layers import LastLayers, reinitialise


@dataclass(frozen=True)
class EUk(LastLayers):
    """Exact unlearning of the last k layers."""

    cite: ClassVar[str] = "goel2022adversarial"
    paper: ClassVar[str] = "EU-k, 2022"
    effort: ClassVar[str] = "R E"

    learning_rate: Positive = 2e-3
    """Step size, constant; training's default, since the layers start anew."""

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Reset the last layers and train them."""
        reinitialise(self.last(student), derive(job.seed, "layers"))
        return self.train_last(student, job)
