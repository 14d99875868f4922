"""Laws of initial phases, by the inverse of their distribution function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

CONCENTRATION = 1.0
"""Of the von Mises law; its mean is 0."""
POINTS = 4097
"""Of the table of quantiles, between which values are interpolated; the largest error is about 1e-3 radians."""


def initial_phases(
    law: str, shape: Sequence[int], generator: torch.Generator | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """Independent phases in radians.

    Args:
        law: `von_mises` with concentration 1, `uniform`, or `zero`.
        shape: Shape of the result.
        generator: Source of the numbers; by default torch's global generator.
        device: Where the numbers are drawn.
    """
    if law == "zero":
        return torch.zeros(*shape, device=device)
    uniform = torch.rand(*shape, generator=generator, device=device)
    return (2 * math.pi) * (uniform - 0.5) if law == "uniform" else von_mises_quantiles(uniform)


def von_mises_quantiles(shares: Tensor) -> Tensor:
    """Quantiles of the von Mises law with mean 0 and concentration 1, of these shares in [0, 1]."""
    table = _quantiles().to(shares)
    place = shares.clamp(0, 1) * (POINTS - 1)
    low = place.long().clamp(max=POINTS - 2)
    return torch.lerp(table[low], table[low + 1], place - low)


@cache
def _quantiles() -> Tensor:
    # A model is also built without memory, on the device `meta`; what is kept must not be of that kind.
    with torch.device("cpu"):
        return _inverted()


def _inverted() -> Tensor:
    angles = torch.linspace(-math.pi, math.pi, POINTS, dtype=torch.float64)
    shares = torch.cumulative_trapezoid((CONCENTRATION * angles.cos()).exp(), angles)
    shares = torch.cat([torch.zeros(1, dtype=torch.float64), shares / shares[-1]])
    wanted = torch.linspace(0, 1, POINTS, dtype=torch.float64)
    right = torch.searchsorted(shares, wanted).clamp(1, POINTS - 1)
    share = (wanted - shares[right - 1]) / (shares[right] - shares[right - 1])
    return torch.lerp(angles[right - 1], angles[right], share)
