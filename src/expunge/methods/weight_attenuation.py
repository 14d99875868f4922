"""Shrink all weights once, then repair on the retain set (2505.22310, Weight Attenuation).

theta <- a * theta, then CE on retain. Every trainable parameter shrinks, also biases and scales of norms. A batch,
group or layer norm divides out the scale of the weights before it: shrinking these does not change the function, but
makes later steps relatively larger. So the strength of the method depends on the architecture.

Cost: one gradient per retain example and epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from expunge.base.part import Share
from expunge.methods._descent import PerturbedDescent


@dataclass(frozen=True)
class WeightAttenuation(PerturbedDescent):
    """Every trainable weight times a constant, then fine-tuning on retain."""

    cite: ClassVar[str] = "siddiqui2025dormant"
    paper: ClassVar[str] = "weight attenuation, 2025"
    effort: ClassVar[str] = "R E"

    factor: Share = 0.3
    """a, the factor of each weight; the paper's 0.5 is for a ResNet-18."""

    def perturb(self, parameter: Tensor, generator: torch.Generator) -> None:
        """Shrink."""
        parameter.mul_(self.factor)
