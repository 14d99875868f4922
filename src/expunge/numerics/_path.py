"""The path of alignment and scale, its peak and its half-life, and polynomials at points of the path."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, minimize_scalar

from expunge.numerics.ode import Array, Trajectory

HALF = 0.5 * (1 - 1e-6)
"""Half of a peak, slightly reduced, so that rounding never reaches an end at exactly half."""


@dataclass(frozen=True)
class AlignmentPath:
    """Alignment and scale over time, from s = 0; time is the step size of the first layer times steps."""

    times: Array
    """`[t]`, evenly spaced in the logarithm after 0."""
    alignment: Array
    """s, `[t]`."""
    scale: Array
    """a, `[t]`."""
    loss: Array
    """Mean of (y - f)^2 / 2, `[t]`; without the part of y that does not depend on <u, x>."""
    peak: float
    """The largest alignment."""
    peak_time: float
    """Time of the peak; the last time if the alignment still rises."""
    half_life: float
    """Time from the peak until half of it is left; infinite if that is not reached."""


def highest(trajectory: Trajectory) -> tuple[float, float]:
    """Time and value of the first variable's maximum, also between the given times."""
    times, values = trajectory.times, trajectory.states[:, 0]
    top = int(values.argmax())
    low, high = times[max(top - 1, 0)], times[min(top + 1, len(times) - 1)]
    refined = minimize_scalar(lambda t: -float(trajectory.at(t)[0]), bounds=(low, high), method="bounded")
    # If the variable still rises, the maximum is at the end of the range, which no refinement reaches.
    if -refined.fun <= values[top]:
        return float(times[top]), float(values[top])
    return float(refined.x), float(-refined.fun)


def falls_to(trajectory: Trajectory, level: float, after: float) -> float:
    """The first time after `after` at which the first variable is below a level; infinite if it never is."""
    times = np.append(after, trajectory.times[trajectory.times > after])
    below = np.flatnonzero(trajectory.at(times)[0] < level)
    if not len(below):
        return math.inf
    first = int(below[0])
    return float(brentq(lambda t: float(trajectory.at(t)[0]) - level, times[first - 1], times[first], xtol=1e-9))


def horner(coefficients: list[float], at: float) -> float:
    """A polynomial at a point, by Horner's rule."""
    total = 0.0
    for coefficient in reversed(coefficients):
        total = total * at + coefficient
    return total
