"""Whether a learned feature fades again, in a solvable model with two time scales.

A two-layer network learns a direction u of Gaussian inputs; its second layer learns slower by the factor epsilon:

    y = sum_k c_k h_k(<u, x>),    f(x) = 1/N sum_i a_i sigma(<w_i, x>),    sigma = sum_k sigma_k h_k,    |w_i| = 1

Train it by large batches of fresh data on (y - f)^2 / 2, from equal a_i and from w_i orthogonal to u. Then two numbers
describe a wide network: the alignment s = <w_i, u> and the scale a = a_i. With V(s) = sum_k c_k sigma_k s^k and
U(r) = sum_k sigma_k^2 r^k,

    ds/dt = a (1 - s^2) [V'(s) - a s U'(s^2)],    da/dt = epsilon [V(s) - a U(s^2)].

First s settles fast, at 1 or where a = a*(s) = V'(s) / (s U'(s^2)). Then a moves slowly, and s follows: if a grows on
that curve, s falls and the feature fades, while the loss falls too. With c_1 and c_2 alone and no mean,
kappa = (c_2 / sigma_2) / (c_1 / sigma_1) decides the end: s = 1 for kappa of 1 or more, s = kappa between 0 and 1, and
s = 0 below.

This is a *derived model*, consistent with the abstract of Imai, Nishiyama and Imaizumi (2602.07378); its formulas and
numbers are not that paper's. With finitely many units N, which repel each other, r = s^2 - (1 - s^2) / (N - 1) replaces
s^2, if N is at most the number of inputs plus 1; then nothing falls to 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.polynomial import Polynomial
from scipy.optimize import brentq

from expunge.base.errors import SpecError
from expunge.numerics._path import HALF, AlignmentPath, falls_to, highest, horner
from expunge.numerics.ode import Array, Solver, Trajectory, integrate

__all__ = ["AlignmentPath", "FastSlow"]

Regime = Literal["kept", "part", "lost", "folded"]
"""Where the alignment ends: `kept` at 1; `part` in between; `lost` at 0 (with finitely many units, at a floor that
vanishes as their number grows); `folded` if the curve a*(s) folds on the way, so only integration gives the end."""
GRID = np.concatenate([np.geomspace(1e-4, 0.5, 1500), np.linspace(0.5, 1, 1001)[1:]])
"""Points at which signs are compared before a zero is refined."""


@dataclass(frozen=True)
class FastSlow:
    """The model with its two equations.

    Raises:
        SpecError: c_1 sigma_1 is not positive, epsilon is not, there are fewer than 2 units, or a number is not finite.
    """

    teacher: Sequence[float]
    """c_0, c_1, and so on."""
    activation: Sequence[float]
    """sigma_0, sigma_1, and so on; missing coefficients of either are 0."""
    ratio: float
    """epsilon: the second layer's step size divided by the first one's, both as multiples of N times the gradient."""
    units: int | None = None
    """N; `None` for infinitely many."""

    def __post_init__(self) -> None:
        c, sigma = self._padded
        if not (np.isfinite(c).all() and np.isfinite(sigma).all() and 0 < self.ratio < math.inf):
            raise SpecError("a coefficient or the ratio is not finite, or the ratio not positive", where="fading")
        if self.units is not None and self.units < 2:
            raise SpecError(f"units = {self.units}", where="fading", allowed="2 or more, or None")
        if not c[1] * sigma[1] > 0:
            raise SpecError(
                f"c_1 sigma_1 = {c[1] * sigma[1]:.4g}",
                where="fading",
                allowed="above 0: at 0 training does not find the direction from s = 0",
                remedy="if it is negative, reverse u: c_k becomes (-1)^k c_k",
            )

    @cached_property
    def _padded(self) -> tuple[Array, Array]:
        both = np.zeros((2, max(len(self.teacher), len(self.activation), 2)))
        both[0, : len(self.teacher)], both[1, : len(self.activation)] = self.teacher, self.activation
        return both[0], both[1]

    @cached_property
    def _v(self) -> tuple[Polynomial, Polynomial, Polynomial]:
        c, sigma = self._padded
        value = Polynomial(c * sigma)
        return value, value.deriv(), value.deriv(2)

    @cached_property
    def _u(self) -> tuple[Polynomial, Polynomial, Polynomial]:
        value = Polynomial(self._padded[1] ** 2)
        return value, value.deriv(), value.deriv(2)

    @cached_property
    def _plain(self) -> tuple[list[list[float]], list[list[float]]]:
        """The same coefficients as plain numbers: a solver evaluates them at thousands of single points."""
        return [[float(c) for c in p.coef] for p in self._v], [[float(c) for c in p.coef] for p in self._u]

    @property
    def kappa(self) -> float:
        """(c_2 / sigma_2) / (c_1 / sigma_1); infinite, or NaN, if sigma_2 is 0."""
        c, sigma = (np.append(series, 0.0) for series in self._padded)
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(c[2] / sigma[2] / (c[1] / sigma[1]))

    @property
    def constant(self) -> float:
        """C = c_1 / sigma_1, the limit of a s if the feature is lost."""
        c, sigma = self._padded
        return float(c[1] / sigma[1])

    def manifold(self, alignment: Array) -> Array:
        """a*(s): the scale at which an alignment in (0, 1] is at rest."""
        return self._v[1](alignment) / (alignment * self._u[1](self._overlap(alignment)))

    def drift(self, alignment: Array) -> Array:
        """Da / d(epsilon t) on the curve a*(s); if the curve falls and this is positive, the feature fades."""
        return self._turn(alignment) / (alignment * self._u[1](self._overlap(alignment)))

    def settled(self, scale: float) -> float:
        """The alignment that settles first, at a fixed scale: the smallest s with a*(s) = scale, or else 1."""
        self._require(scale)
        values = self._v[1](GRID) - scale * GRID * self._u[1](self._overlap(GRID))
        crossed = np.flatnonzero((values[:-1] > 0) & (values[1:] <= 0))
        if values[0] <= 0:
            # As s tends to 0, a*(s) is proportional to 1 / s.
            return float(GRID[0] * self.manifold(GRID[0])) / scale
        if not len(crossed):
            return 1.0
        low, high = GRID[crossed[0]], GRID[crossed[0] + 1]
        force = lambda s: self._v[1](s) - scale * s * self._u[1](self._overlap(s))  # noqa: E731
        return float(brentq(force, low, high, xtol=1e-14))

    def regime(self, scale: float) -> tuple[Regime, float]:
        """The end of the slow flow from an initial scale, as epsilon tends to 0.

        Args:
            scale: a at the beginning, positive.

        Returns:
            The regime, and the alignment at the end; NaN if the curve folds.
        """
        start = self.settled(scale)
        fades = float(self._turn(np.array(start))) > 0
        if start == 1.0 and not fades:
            return "kept", 1.0
        end = self._next_zero(start, down=fades)
        between = GRID[(min(start, end) <= GRID) & (max(start, end) >= GRID)]
        if len(between) > 1 and (np.diff(self.manifold(between)) >= 0).any():
            return "folded", math.nan
        if end == 1.0:
            return "kept", 1.0
        if self.units is not None and fades:
            # The floor of a feature that infinitely many units would lose completely.
            wide = FastSlow(self.teacher, self.activation, self.ratio)
            return wide.regime(scale)[0], end
        return ("lost", 0.0) if end == 0.0 else ("part", end)

    def law(self) -> tuple[float, float] | None:
        """How a lost feature fades at late times: s = C / a with a^(m + 1) = a_0^(m + 1) + rate * t.

        Returns:
            The exponent -1 / (m + 1) of s in t, and the rate; `None` if the feature is not lost, or for finite units.
        """
        if self.units is not None:
            return None
        lowest = np.flatnonzero(self._turn_coefficients)
        if not len(lowest) or lowest[0] < 3 or not self._turn_coefficients[lowest[0]] > 0:
            return None
        m = int(lowest[0]) - 1
        strength = float(self._turn_coefficients[lowest[0]]) / float(self._padded[1][1]) ** 2
        return -1 / (m + 1), (m + 1) * self.ratio * strength * self.constant**m

    def field(self, time: float, state: Array) -> Array:
        """The equations in v = artanh s and a; no step in v can cross s = 1."""
        v, a = state
        s = math.tanh(v)
        r, (v0, v1, _), (u0, u1, _) = float(self._overlap(s)), *self._plain
        pull, mean = horner(v1, s) - a * s * horner(u1, r), self._mean(horner(u0, r))
        return np.array([a * pull, self.ratio * (horner(v0, s) - a * mean)])

    def jacobian(self, time: float, state: Array) -> Array:
        """Derivative of `field` by v and a."""
        v, a = state
        s = math.tanh(v)
        r, inner, ((_, v1, v2), (u0, u1, u2)) = float(self._overlap(s)), 1 - s * s, self._plain
        bent = horner(u1, r) + s * horner(u2, r) * self._overlap_slope(s)
        pull = horner(v1, s) - 2 * a * s * horner(u1, r)
        by_v = [a * inner * (horner(v2, s) - a * bent), self.ratio * inner * pull]
        return np.array([by_v, [pull, -self.ratio * self._mean(horner(u0, r))]]).T

    def loss(self, alignment: Array, scale: Array) -> Array:
        """Mean of (y - f)^2 / 2 over inputs."""
        both = scale**2 * self._mean(self._u[0](self._overlap(alignment))) - 2 * scale * self._v[0](alignment)
        return np.asarray((np.square(self._padded[0]).sum() + both) / 2)

    def solve(self, scale: float, times: Array, solver: Solver = "LSODA", tolerance: float = 1e-8) -> Trajectory:
        """States v = artanh s and a at these times, from s = 0."""
        self._require(scale)
        start = np.array([0.0, scale])
        return integrate(
            self.field,
            start,
            times,
            jacobian=self.jacobian,
            solver=solver,
            tolerance=tolerance,
        )

    def path(
        self, scale: float, horizon: float, points: int = 400, solver: Solver = "LSODA", tolerance: float = 1e-8
    ) -> AlignmentPath:
        """The path from s = 0.

        Args:
            scale: a at the beginning, positive.
            horizon: The last time, above 0.01.
            points: Number of times.
            solver: See `integrate`.
            tolerance: See `integrate`.

        Raises:
            SpecError: The scale or the horizon is out of range.
            RunError: The solver gives up.
        """
        self._require(scale)
        if not 0.01 < horizon < math.inf:
            raise SpecError(f"horizon = {horizon}", where="fading", allowed="above 0.01, in units of steps * step size")
        times = np.append(0.0, np.geomspace(0.01, horizon, max(points, 2) - 1))
        solution = self.solve(scale, times, solver, tolerance)
        s, a = np.tanh(solution.states[:, 0]), solution.states[:, 1]
        when, height = highest(solution)
        half = falls_to(solution, math.atanh(HALF * math.tanh(height)), when)
        return AlignmentPath(times, s, a, self.loss(s, a), math.tanh(height), when, half - when)

    def _overlap(self, s: Array | float) -> Array:
        """r: <w_i, w_j> of two units."""
        return np.asarray(s * s if self.units is None else s * s - (1 - s * s) / (self.units - 1))

    def _overlap_slope(self, s: float) -> float:
        return 2 * s if self.units is None else 2 * s * self.units / (self.units - 1)

    def _mean(self, between: Any) -> Any:
        """Mean of U(<w_i, w_j>) over all pairs, including i = j, from U between two different units."""
        return between if self.units is None else (1 - 1 / self.units) * between + self._u[0](1.0) / self.units

    @cached_property
    def _turn_coefficients(self) -> Array:
        """V(s) s U'(s^2) - V'(s) U(s^2): powers k + 2 l - 1 with the factor l - k, where equal terms cancel exactly."""
        c, sigma = self._padded
        coefficients = np.zeros(3 * len(c))
        for k in range(len(c)):
            for m in range(len(c)):
                if k != m:
                    coefficients[k + 2 * m - 1] += (m - k) * c[k] * sigma[k] * sigma[m] ** 2
        return coefficients

    def _turn(self, s: Array) -> Array:
        if self.units is None:
            return np.asarray(Polynomial(self._turn_coefficients)(s))
        u0, u1, _ = self._u
        return np.asarray(self._v[0](s) * s * u1(self._overlap(s)) - self._v[1](s) * self._mean(u0(self._overlap(s))))

    def _next_zero(self, start: float, *, down: bool) -> float:
        """The first zero of the drift below or above `start`; 0 or 1 if there is none."""
        beyond = np.append(start, GRID[start > GRID][::-1] if down else GRID[start < GRID])
        turned = np.flatnonzero((self._turn(beyond[1:]) > 0) != down)
        if not len(turned):
            return 0.0 if down else 1.0
        low, high = sorted(beyond[turned[0] : turned[0] + 2])
        return float(brentq(lambda s: float(self._turn(np.array(s))), low, high, xtol=1e-14))

    def _require(self, scale: float) -> None:
        if not 0 < scale < math.inf:
            raise SpecError(f"the initial scale is {scale}", where="fading", allowed="a positive number")
