"""Coefficients of a function in Hermite polynomials, orthonormal under the standard normal distribution.

    sigma = sum_k sigma_k h_k,    sigma_k = E[sigma(z) h_k(z)],    h_k = He_k / sqrt(k!),    z ~ N(0, 1)

Gauss-Hermite quadrature with n nodes is exact for polynomials of degree 2 n - 1 and converges fast for smooth
functions, but slowly for a function with a kink: the error of ReLU falls as 1 / n. So the nodes are doubled until two
doublings in a row change no coefficient by more than the tolerance, or the limit is reached. The larger of the two last
changes is reported as the error. If the positions of kinks are given, the line is cut there, and Gauss-Legendre
quadrature on every piece converges fast again.

Cost: the function at a few hundred to a few thousand points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import roots_hermitenorm
from torch import Tensor

from expunge.base.errors import RunError, SpecError

REACH = 14.0
"""Outer end of the pieces; the normal distribution has 2e-44 beyond."""
FEWEST = 32
"""First number of nodes; exact for polynomials of degree 63."""

Rule = tuple[Tensor, Tensor]
"""Nodes `[n]` and weights `[n]` of a quadrature under the normal distribution."""


@dataclass(frozen=True)
class Hermite:
    """Coefficients of degree 0 and up."""

    values: Tensor
    """`[degree + 1]`, double precision."""
    errors: Tensor
    """Error bound of each value, `[degree + 1]`: the largest change of the last two doublings, plus rounding."""
    energy: float
    """E[sigma(z)^2]."""
    nodes: int
    """Nodes of the last quadrature, in each piece."""
    converged: bool
    """Whether the last two doublings changed no coefficient by more than the tolerance."""

    @property
    def left_out(self) -> float:
        """Share of the energy in higher degrees, between 0 and 1; 0 for the zero function."""
        return max(1 - float(self.values.square().sum()) / self.energy, 0.0) if self.energy > 0 else 0.0


def polynomials(points: Tensor, degree: int) -> Tensor:
    """The orthonormal polynomials h_0 to h_degree at points `[n]`, as `[n, degree + 1]` in double precision.

    Raises:
        SpecError: The degree is negative.
    """
    if degree < 0:
        raise SpecError(f"degree = {degree}", where="hermite", allowed="0 or more")
    z = points.double()
    values = [torch.ones_like(z), z]
    for k in range(1, degree):
        values.append((z * values[k] - math.sqrt(k) * values[k - 1]) / math.sqrt(k + 1))
    return torch.stack(values[: degree + 1], 1)


def hermite(
    function: Callable[[Tensor], Tensor],
    degree: int,
    *,
    kinks: Sequence[float] = (),
    tolerance: float = 1e-10,
    limit: int = 1024,
) -> Hermite:
    """The coefficients of a function.

    Args:
        function: Maps points `[n]` in double precision to values `[n]`, such as `torch.tanh`.
        degree: Highest degree.
        kinks: Where the function or its derivatives jump: `(0.0,)` for ReLU.
        tolerance: Largest change of a coefficient when nodes are doubled, relative to the root of the energy.
        limit: Largest number of nodes, per piece if there are kinks.

    Returns:
        Coefficients with their errors; check `converged` if the function is not smooth.

    Raises:
        SpecError: The degree is negative, the limit is too small for it, or the function returns another shape.
        RunError: A value of the function is not finite.
    """
    if limit < 4 * FEWEST or limit < 2 * degree:
        allowed = f"at least {max(4 * FEWEST, 2 * degree)} nodes for degree {degree}"
        raise SpecError(f"limit = {limit}", where="hermite", allowed=allowed)
    nodes, changes = FEWEST, [math.inf]
    last, energy = _coefficients(function, degree, _rule(nodes, kinks))
    steps: list[Tensor] = []
    while 2 * nodes <= limit:
        nodes *= 2
        values, energy = _coefficients(function, degree, _rule(nodes, kinks))
        steps.append((values - last).abs())
        last = values
        changes.append(float(steps[-1].max()))
        if max(changes[-2:]) <= tolerance * math.sqrt(energy):
            break
    rounding = 64 * torch.finfo(torch.float64).eps * math.sqrt(energy)
    errors = torch.stack(steps[-2:]).max(0).values + rounding
    return Hermite(last, errors, energy, nodes, max(changes[-2:]) <= tolerance * math.sqrt(energy))


def _coefficients(function: Callable[[Tensor], Tensor], degree: int, rule: Rule) -> tuple[Tensor, float]:
    nodes, weights = rule
    values = function(nodes.clone())
    if values.shape != nodes.shape:
        finding = f"returns shape {list(values.shape)} for points {list(nodes.shape)}"
        raise SpecError(finding, where="function", allowed="one value for each point")
    values = values.detach().double()
    if not values.isfinite().all():
        at = float(nodes[~values.isfinite()][0])
        raise RunError(f"is not finite at {at:.4g}", where="function")
    return polynomials(nodes, degree).T @ (weights * values), float((weights * values.square()).sum())


def _rule(nodes: int, kinks: Sequence[float]) -> Rule:
    if kinks:
        return _pieces(nodes, kinks)
    points, weights = roots_hermitenorm(nodes)
    return torch.from_numpy(points), torch.from_numpy(weights / weights.sum())


def _pieces(nodes: int, kinks: Sequence[float]) -> Rule:
    """Gauss-Legendre on each piece of the line; the weights include the normal density."""
    ends = [-REACH, *sorted({float(kink) for kink in kinks if abs(kink) < REACH}), REACH]
    points, weights = np.polynomial.legendre.leggauss(nodes)
    left, right = np.array(ends[:-1])[:, None], np.array(ends[1:])[:, None]
    at = ((right + left) / 2 + (right - left) / 2 * points).ravel()
    under = ((right - left) / 2 * weights).ravel() * np.exp(-(at**2) / 2) / math.sqrt(2 * math.pi)
    return torch.from_numpy(at), torch.from_numpy(under)
