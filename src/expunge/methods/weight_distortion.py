"""Add Gaussian noise to the weights once, then repair on the retain set (2505.22310, Weight Distortion).

theta <- theta + N(0, sigma^2), then CE on retain. The noise moves the model far from the weights that knew the forget
set. This distance makes relearning harder, but costs test accuracy. Frozen parameters get no noise.

Cost: one gradient per retain example and epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from expunge.base.part import Positive
from expunge.methods._descent import PerturbedDescent
from expunge.methods._noise import add_noise


@dataclass(frozen=True)
class WeightDistortion(PerturbedDescent):
    """Noise on every trainable weight, then fine-tuning on retain."""

    cite: ClassVar[str] = "siddiqui2025dormant"
    paper: ClassVar[str] = "weight distortion, 2025"
    effort: ClassVar[str] = "R E"
    stronger: ClassVar[tuple[str, float]] = ("sigma", 1.5)

    sigma: Positive = 0.1
    """Standard deviation of the noise, in units of the weights; the paper's 0.02 is for a ResNet-18."""

    def perturb(self, parameter: Tensor, generator: torch.Generator) -> None:
        """Add the noise."""
        add_noise(parameter, self.sigma, generator)
