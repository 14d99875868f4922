"""The way of alignment and scale, its peak and its half-life, and polynomials at the points of the way."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, minimize_scalar

from expunge.numerics.ode import Array, Trajectory

HALF = 0.5 * (1 - 1e-6)
"""What is half of a peak: a little less, so that an end at exactly half of it is never reached by rounding."""


@dataclass(frozen=True)
class AlignmentPath:
    """How alignment and scale go from s = 0 on; time is the step size of the first layer times steps."""

    times: Array
    """`[t]`, evenly spaced in the logarithm after 0."""
    alignment: Array
    """s, `[t]`."""
    scale: Array
    """a, `[t]`."""
    loss: Array
    """Mean of (y - f)^2 / 2, `[t]`; without what of y does not depend on <u, x>."""
    peak: float
    """The largest alignment."""
    peak_time: float
    """When; the last time where it still rises."""
    half_life: float
    """Time from the peak until half of it is left; infinite where that is not reached."""


def highest(found: Trajectory) -> tuple[float, float]:
    """When the first variable is largest and how large, between the times too."""
    times, values = found.times, found.states[:, 0]
    top = int(values.argmax())
    low, high = times[max(top - 1, 0)], times[min(top + 1, len(times) - 1)]
    refined = minimize_scalar(lambda t: -float(found.at(t)[0]), bounds=(low, high), method="bounded")
    # The end of the range is the largest where nothing has fallen yet, and no refinement reaches it.
    if -refined.fun <= values[top]:
        return float(times[top]), float(values[top])
    return float(refined.x), float(-refined.fun)


def falls_to(found: Trajectory, level: float, after: float) -> float:
    """The first time after another at which the first variable is below a level; infinite where it never is."""
    times = np.append(after, found.times[found.times > after])
    below = np.flatnonzero(found.at(times)[0] < level)
    if not len(below):
        return math.inf
    first = int(below[0])
    return float(brentq(lambda t: float(found.at(t)[0]) - level, times[first - 1], times[first], xtol=1e-9))


def horner(coefficients: list[float], at: float) -> float:
    """A polynomial at a point, by Horner's rule."""
    total = 0.0
    for coefficient in reversed(coefficients):
        total = total * at + coefficient
    return total
