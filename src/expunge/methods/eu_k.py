"""Give the last k layers fresh initial values and train them on the retain set (EU-k, Goel et al., 2201.06640).

Minimises CE(retain) over the parameters of the last k layers, from new initial values. All other layers, and the
running statistics of their batch norms, do not change. A layer is a module with its own trainable parameters that are
not tied to an earlier layer; norms count as layers. Its `reset_parameters` gives the initial values, or, in a Hugging
Face model, a new model of its configuration; frozen parameters keep their values. The published code counts only
convolutions and linear layers; the norms between them keep their old values at the start but are trained too.

Cost: one gradient per retain example and epoch (without the backward pass through the frozen layers).
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
    """Step size, constant; training's default, because the layers start from scratch."""

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Reset the last layers and train them."""
        reinitialise(student, self.last(student), derive(job.seed, "layers"))
        return self.train_last(student, job)
