"""Quantiles, intervals of simple samples, and the correction for several tests.

Tests are one-sided at 5 %, so intervals are 90 % intervals. `contrast.py` has the intervals of means over seeds and
examples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import special

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LEVEL = 0.05
"""Error rate of each one-sided test; the intervals shown are 90 %."""


def t_quantile(df: float, level: float = LEVEL) -> float:
    """The upper quantile of Student's t: the probability above it is `level`; NaN without degrees of freedom."""
    if math.isinf(df):
        return -float(special.ndtri(level))
    return -float(special.stdtrit(df, level)) if df > 0 else math.nan


def student(values: Floats) -> tuple[float, float, float]:
    """Mean and 90 % interval of independent values `[n]`; the ends are NaN for fewer than two values.

    Returns:
        Mean, low, high.
    """
    n = len(values)
    with np.errstate(invalid="ignore"):  # infinite values have no interval
        mean = float(np.mean(values)) if n else math.nan
        half = t_quantile(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return mean, mean - half, mean + half


def wilson(successes: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's interval for a rate, which has a width even if no trial or every trial succeeds.

    Args:
        successes: Trials that succeeded, 0 to n.
        n: Number of trials, at least 1.
        level: Error rate on each side.

    Returns:
        The ends, within [0, 1].
    """
    z, rate = float(special.ndtri(1 - level)), successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(rate * (1 - rate) / n + (z / (2 * n)) ** 2) / (1 + z * z / n)
    # The low end is exactly 0 without a success, and the high end exactly 1 without a failure, whatever the rounding.
    return (max(centre - half, 0.0) if successes else 0.0), (min(centre + half, 1.0) if successes < n else 1.0)


def holm(pvalues: Sequence[float], most: int | None = None) -> list[float]:
    """Holm's adjusted p-values, in the given order: reject where one is at most the family's error rate.

    Args:
        pvalues: One per hypothesis.
        most: The most hypotheses that can be true at once, if some exclude each other (Shaffer 1986, procedure S1 with
            one bound for all steps); by default all of them.
    """
    adjusted, worst = [0.0] * len(pvalues), 0.0
    for rank, index in enumerate(sorted(range(len(pvalues)), key=lambda i: pvalues[i])):
        remaining = len(pvalues) - rank
        worst = max(worst, min(1.0, (remaining if most is None else min(remaining, most)) * pvalues[index]))
        adjusted[index] = worst
    return adjusted
