"""The spectral radius of a linear map that preserves positive semi-definite matrices, between two bounds.

The radius rho of such a map T is an eigenvalue with a positive semi-definite eigenmatrix (Krein and Rutman 1948). Power
iteration from the identity cannot miss it, because the identity has a component along every such matrix. For any
positive definite M

    T(M) <= c M  implies  rho <= c,        T(M) >= c M  implies  rho >= c        (Collatz 1942, Wielandt 1950)

and during the iteration the first c never rises and the second never falls. If T is self-adjoint in a weighted inner
product, Rayleigh's quotient is a lower bound too. It is much better if the map has parts that do not mix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.base.errors import RunError

LOOK = 8
"""Iterations between two computations of the bounds, which cost as much as several iterations."""


@dataclass(frozen=True)
class Radius:
    """A spectral radius between `low` and `high`, up to rounding."""

    value: float
    """Rayleigh's quotient; without a weight, the growth of the last product."""
    low: float
    high: float
    products: int
    """Number of products with the map."""


def spectral_radius(
    apply: Callable[[Tensor], Tensor],
    like: Tensor,
    *,
    weight: Tensor | None = None,
    tolerance: float = 1e-4,
    limit: int = 400,
) -> Radius:
    """Power iteration from the identity until the bounds are within the tolerance, or the limit is reached.

    Args:
        apply: Maps a symmetric matrix `[r, r]` to another; preserves positive semi-definite matrices.
        like: A matrix `[r, r]`; only its size, dtype and device are read.
        weight: `[r, r]` with positive entries such that sum(weight * N * T(M)) is symmetric in M and N; `None` if there
            is no such weight.
        tolerance: Largest distance of the bounds, relative to the upper one.
        limit: Largest number of products.

    Returns:
        The radius; 0 if a product is 0.

    Raises:
        RunError: A product is not finite.
    """
    matrix = torch.eye(len(like)).to(like)
    low, high, value = 0.0, float("inf"), 0.0
    for count in range(1, limit + 1):
        following = apply(matrix)
        size = float(following.norm())
        if not size < float("inf"):
            raise RunError(f"product {count} is not finite", where="spectral_radius")
        if size == 0:
            return Radius(0.0, 0.0, 0.0, count)
        if count % LOOK == 1 or count == limit:
            least, most = _ratios(following, matrix)
            low, high = max(low, least), min(high, most)
            if weight is None:
                value = size / float(matrix.norm())
            else:
                value = float((weight * matrix * following).sum() / (weight * matrix * matrix).sum())
                low = max(low, value)
            # Rounding may make the lower bound exceed the upper one in the last digit.
            high = max(high, low)
            value = min(max(value, low), high)
            if high - low <= tolerance * high:
                break
        matrix = (following + following.T) / (2 * size)
    return Radius(value, low, high, count)


def _ratios(following: Tensor, matrix: Tensor) -> tuple[float, float]:
    """Smallest and largest c with det(following - c matrix) = 0; no bounds if the matrix is numerically singular."""
    values, vectors = torch.linalg.eigh(matrix)
    if float(values[0]) <= 1e5 * torch.finfo(matrix.dtype).eps * len(values) * float(values[-1]):
        return 0.0, float("inf")
    half = vectors * values.rsqrt()
    ratios = torch.linalg.eigvalsh(half.T @ following @ half)
    return float(ratios[0]), float(ratios[-1])
