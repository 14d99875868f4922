"""Add Gaussian noise to every input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.base.part import Positive
from expunge.core.contracts import Augmentation


@dataclass(frozen=True)
class Noise(Augmentation):
    """Independent Gaussian noise on every number of the inputs."""

    sigma: Positive = 0.05
    """Standard deviation, in the unit of the inputs; for complex inputs, that of real and imaginary part together."""

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Inputs of any shape `[b, ...]` with noise added."""
        drawn = torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype)
        return inputs + self.sigma * drawn.to(inputs.device)
