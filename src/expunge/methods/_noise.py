"""Gaussian noise that is the same on every device and in every precision."""

from __future__ import annotations

import torch
from torch import Tensor


def standard_normal(parameter: Tensor, generator: torch.Generator) -> Tensor:
    """Independent N(0, 1) in the shape, dtype and device of a real parameter, drawn on the CPU in double precision."""
    return torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)


def add_noise(parameter: Tensor, sigma: float, generator: torch.Generator) -> None:
    """Add N(0, sigma^2) to every entry of a real parameter, in place."""
    parameter.add_(standard_normal(parameter, generator), alpha=sigma)
