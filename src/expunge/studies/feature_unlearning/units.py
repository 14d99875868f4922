"""The model of `numerics.fading` for second-layer weights that differ from the start, for example of both signs.

In the limit of many units, each group i of share p_i has its own alignment s_i and scale a_i, and all see the same
residual rho_k = c_k - sigma_k sum_j p_j a_j s_j^k:

    ds_i/dt = a_i (1 - s_i^2) sum_k k sigma_k s_i^(k - 1) rho_k,    da_i/dt = epsilon sum_k sigma_k s_i^k rho_k

A unit with a negative a_i turns to -u. With equal shares of a and -a the even degrees cancel at first, and then the two
groups diverge; kappa then predicts nothing. Like `numerics.fading`, this is a derived model; it has no floor of
finitely many units.

Cost: about a thousand evaluations, each of groups times degrees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from expunge.base.errors import SpecError
from expunge.numerics.ode import Array, Solver, integrate


@dataclass(frozen=True)
class UnitPaths:
    """The path of every group from s = 0; time is the first layer's step size times steps."""

    times: Array
    """`[t]`."""
    alignments: Array
    """`[t, groups]`."""
    scales: Array
    """`[t, groups]`."""
    alignment: Array
    """Root of the mean over units of the squared alignment, `[t]`: what `FeatureLossMonitor` measures."""
    loss: Array
    """Mean of (y - f)^2 / 2, `[t]`."""


def unit_paths(
    teacher: Sequence[float],
    activation: Sequence[float],
    ratio: float,
    scales: Sequence[float],
    times: Array,
    *,
    shares: Sequence[float] | None = None,
    solver: Solver = "LSODA",
    tolerance: float = 1e-8,
) -> UnitPaths:
    """Solve the equations of all groups.

    Args:
        teacher: c_0, c_1, and so on.
        activation: sigma_0, sigma_1, and so on; missing coefficients of either are 0.
        ratio: epsilon, the second layer's step size divided by the first layer's.
        scales: Each group's initial second-layer weight, of either sign, not 0.
        times: Rising; the first is the start.
        shares: Share of the units in each group, with the sum 1; equal by default.
        solver: See `integrate`.
        tolerance: See `integrate`.

    Raises:
        SpecError: Shares do not fit, a scale is 0, the ratio is not positive, or a number is not finite.
        RunError: The solver gives up.
    """
    a = np.asarray(scales, dtype=np.float64)
    p = np.full(len(a), 1 / len(a)) if shares is None else np.asarray(shares, dtype=np.float64)
    if p.shape != a.shape or not (p > 0).all() or not math.isclose(p.sum(), 1, rel_tol=1e-9):
        raise SpecError("do not fit the scales", where="shares", allowed="a positive number for each, with the sum 1")
    size = max(len(teacher), len(activation), 2)
    c, sigma = (
        np.pad(np.asarray(series, dtype=np.float64), (0, size - len(series))) for series in (teacher, activation)
    )
    if not (np.isfinite(np.concatenate([a, c, sigma])).all() and a.all() and 0 < ratio < math.inf):
        raise SpecError("a number is not finite, a scale is 0, or the ratio not positive", where="unit_paths")
    k = np.arange(size)

    def field(time: float, state: Array) -> Array:
        s, scale = np.tanh(state[: len(a)]), state[len(a) :]
        powers = s[:, None] ** k
        residual = sigma * (c - sigma * ((p * scale) @ powers))
        # dv/dt = ds/dt / (1 - s^2) in v = artanh s.
        pull = powers[:, :-1] @ (k[1:] * residual[1:])
        return np.concatenate([scale * pull, ratio * (powers @ residual)])

    solution = integrate(field, np.concatenate([np.zeros(len(a)), a]), times, solver=solver, tolerance=tolerance)
    s, scale = np.tanh(solution.states[:, : len(a)]), solution.states[:, len(a) :]
    moments = np.einsum("g,tg,tgk->tk", p, scale, s[:, :, None] ** k)
    loss = np.square(c - sigma * moments).sum(1) / 2
    return UnitPaths(solution.times, s, scale, np.sqrt(s**2 @ p), loss)
