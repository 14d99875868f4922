"""Set random weights to zero once, then repair on the retain set (2505.22310, Weight Dropout).

Each entry of each trainable parameter, also of biases and scales of norms, becomes zero with probability p. Then CE on
retain, in which the zeros may change again. Nothing is divided by 1 - p: the mask is drawn once and the repair follows,
so no expectation must be preserved.

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
class WeightDropout(PerturbedDescent):
    """Random trainable weights set to zero, then fine-tuning on retain."""

    cite: ClassVar[str] = "siddiqui2025dormant"
    paper: ClassVar[str] = "weight dropout, 2025"
    effort: ClassVar[str] = "R E"
    stronger: ClassVar[tuple[str, float]] = ("p", 1.25)

    p: Share = 0.4
    """Probability of zero, for each weight; the paper's 0.2 is for a ResNet-18."""

    def perturb(self, parameter: Tensor, generator: torch.Generator) -> None:
        """Draw a mask, on the CPU in double precision so that all devices have the same, and set entries to zero."""
        drawn = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.masked_fill_((drawn < self.p).to(parameter.device), 0)
