"""How uncertain is a mean over seeds and examples? Everything is one-sided at 5 %, so intervals hold 90 %.

A contrast is a mean over seeds of means over examples. Its standard error is the larger of two:

    over seeds      sd(seed means) / sqrt(S)
    over examples   sqrt(sum_g u_g^2 + 2 c^2 / (G + 2)^2),   u_g = sum_{s, i = g} (d_si - mean_s) / (S n_s)

`u_g` gathers everything one example contributes, in whichever seeds it appears. With the same examples in every seed
this is sd / sqrt(n) of the averages per example, since the same examples again are no new evidence; with other examples
in each seed it is the error of independent means; with some in common it lies between. The second term is explained at
`sampling_error`. Student's t has S - 1 degrees of freedom whichever error is the larger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Term = tuple[float, Floats, Ints]
"""A weighted mean over examples: weight, values `[n]`, ids `[n]`."""

LEVEL = 0.05
"""Error rate of each one-sided test; the intervals shown are 90 %."""
MOST_SEEDS = 1000
"""Beyond this many, more seeds are not an answer that anybody can use."""


def t_quantile(df: float, level: float = LEVEL) -> float:
    """Student's t above which a share `level` lies; NaN without degrees of freedom."""
    return float(special.stdtrit(df, 1 - level)) if df > 0 else math.nan


def student(values: Floats) -> tuple[float, float, float]:
    """Mean and 90 % interval of independent values `[n]`; NaN ends for fewer than two.

    Returns:
        Mean, low, high.
    """
    n = len(values)
    with np.errstate(invalid="ignore"):  # infinite values have no interval
        mean = float(np.mean(values)) if n else math.nan
        half = t_quantile(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return mean, mean - half, mean + half


def wilson(successes: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's interval for a rate, which keeps its width when no or every trial succeeds.

    Args:
        successes: Trials that succeeded, 0 to n.
        n: Number of trials, at least 1.
        level: Error rate on each side.

    Returns:
        Low and high, within [0, 1].
    """
    z, rate = float(special.ndtri(1 - level)), successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(rate * (1 - rate) / n + (z / (2 * n)) ** 2) / (1 + z * z / n)
    # Rounding must not push the ends off 0 and 1, where they lie exactly for no and for every success.
    return (max(centre - half, 0.0) if successes else 0.0), (min(centre + half, 1.0) if successes < n else 1.0)


def holm(pvalues: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: reject where one is at most the family's error rate."""
    adjusted, worst = [0.0] * len(pvalues), 0.0
    for rank, index in enumerate(sorted(range(len(pvalues)), key=lambda i: pvalues[i])):
        worst = max(worst, min(1.0, (len(pvalues) - rank) * pvalues[index]))
        adjusted[index] = worst
    return adjusted


@dataclass(frozen=True)
class Contrast:
    """A mean, its standard error and what that error is made of."""

    mean: float
    se: float
    """Larger of the error over seeds and the error over examples."""
    df: float
    spread: float = math.nan
    """Standard deviation of the means of seeds, or of references; NaN where there is only one."""
    sampling: float = 0.0
    """Standard error over examples, below which `se` never lies."""
    lasting: float = 0.0
    """The part of `sampling` that more seeds would not reduce, since they would bring the same examples again."""
    drawn: bool = False
    """Whether one model is held against a population: its own scatter stays however many references there are."""

    @property
    def half_width(self) -> float:
        """Half the width of the 90 % interval."""
        return t_quantile(self.df) * self.se

    @property
    def low(self) -> float:
        """Lower bound, one-sided at 5 %."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """Upper bound, one-sided at 5 %."""
        return self.mean + self.half_width

    def p_above(self, x: float) -> float:
        """The p-value of "the mean is at most `x`": small where it lies above. 1 where it cannot be computed."""
        if self.se == 0:
            return 0.0 if self.mean > x else 1.0
        p = float(special.stdtr(self.df, (x - self.mean) / self.se)) if self.df > 0 else math.nan
        return 1.0 if math.isnan(p) else p

    def p_below(self, x: float) -> float:
        """The p-value of "the mean is at least `x`": small where it lies below. 1 where it cannot be computed."""
        return Contrast(-self.mean, self.se, self.df).p_above(-x)

    def seeds_needed(self, distance: float, level: float = LEVEL) -> int | None:
        """How many seeds make the half-width smaller than `distance`, if spread and sampling stay as they are.

        Args:
            distance: What has to be told apart from 0.
            level: One-sided error rate, smaller where several tests share it.

        Returns:
            The number, at least as many as now; `None` where no number up to `MOST_SEEDS` would do.
        """
        seeds = np.arange(max(3, int(self.df) + 1), MOST_SEEDS + 1)
        between = self.spread * np.sqrt(1 / seeds + self.drawn)
        passing = max(self.sampling**2 - self.lasting**2, 0.0) * (self.df + 1) / seeds
        within = np.sqrt(self.lasting**2 + passing)
        enough = special.stdtrit(seeds - 1, 1 - level) * np.maximum(between, within) < distance
        return int(seeds[np.argmax(enough)]) if enough.any() else None

    def limited_by_examples(self, distance: float, level: float = LEVEL) -> bool:
        """Whether the sampling error alone keeps the half-width above `distance`, however many seeds are run."""
        alone = self.sampling if math.isnan(self.spread) else self.lasting
        return float(special.ndtri(1 - level)) * alone >= distance


def sampling_error(terms: Sequence[Term], step: float = 0.0) -> float:
    """Standard error over examples of a sum of weighted means, each example a cluster of all it contributes.

    Where values are counts - right or wrong, recited or not - models that agree on every example have a variance of 0,
    yet n agreements cannot exclude that one in n / 3 would have differed. So two examples are imagined that differ by
    the whole `step`, one each way: for paired 0/1 values that all agree this is the error of Bonett and Price (2012),
    who add one to each of the two discordant cells. It fades as 1/n and matters only where agreement is nearly perfect.

    Args:
        terms: What is summed. An id that occurs again, in the same term or another, is the same example.
        step: The most that one example can change, in the unit of the values; 0 for continuous values, which show their
            spread themselves.

    Returns:
        The standard error; 0 for single numbers, whose error over examples is unknown.
    """
    clusters = _contributions(terms)[0].sum(axis=0)
    return math.sqrt(float(clusters @ clusters) + 2 * (step / (clusters.size + 2)) ** 2)


def lasting_error(terms: Sequence[Term], sampling: float) -> float:
    """The part of a sampling error that stays when there are more terms of the same kind.

    What an example contributes differs between terms for reasons of the terms, which average out, and has a mean of its
    own, which does not. Examples that occur in one term only count as replaced by others in the next.

    Args:
        terms: The terms of which there could be more: seeds, or references.
        sampling: The whole standard error over examples.

    Returns:
        A standard error of at most `sampling`.
    """
    parts, present = _contributions(terms)
    count = present.sum(axis=0)
    within = np.where(present, parts - parts.sum(axis=0) / count, 0.0)
    shared = count / np.maximum(count - 1, 1) * np.square(within).sum(axis=0)
    passing = np.where(count > 1, shared, np.square(parts).sum(axis=0)).sum()
    return math.sqrt(max(sampling**2 - float(passing), 0.0))


def _contributions(terms: Sequence[Term]) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """What each of G examples adds to the deviation of each of T terms, `[T, G]`, and where it occurs at all."""
    first = terms[0][2]
    if all(ids is first for _, _, ids in terms):  # the common case, and sorting is what takes the time
        names, codes = np.unique(first, return_inverse=True)
        owns = [codes] * len(terms)
    else:
        names, codes = np.unique(np.concatenate([ids for _, _, ids in terms]), return_inverse=True)
        owns = np.split(codes, np.cumsum([ids.size for _, _, ids in terms])[:-1])
    parts, present = [], []
    for (weight, values, _), own in zip(terms, owns, strict=True):
        occurs = np.bincount(own, minlength=names.size) > 0
        draws = int(np.count_nonzero(occurs))
        # Bessel's correction per term: a single seed then gives exactly sd / sqrt(n) with n - 1 in the variance.
        scale = weight / values.size * math.sqrt(draws / max(draws - 1, 1))
        parts.append(np.bincount(own, weights=scale * (values - values.mean()), minlength=names.size))
        present.append(occurs)
    return np.stack(parts), np.stack(present)


def combine(means: Floats, sampling: float, lasting: float) -> Contrast:
    """The contrast whose seeds have these means `[S]`; a single seed has a mean, but no error."""
    seeds = len(means)
    spread = float(np.std(means, ddof=1)) if seeds > 1 else math.nan
    # Not max(): the order of its arguments would decide whether a NaN survives.
    se = float(np.maximum(spread / math.sqrt(seeds), sampling))
    return Contrast(float(np.mean(means)), se, seeds - 1, spread, sampling, lasting)


def contrast(per_seed: Sequence[Floats], ids: Sequence[Ints], *, step: float = 0.0) -> Contrast:
    """The mean over seeds of a value per example, with an error that neither seeds nor examples can talk down.

    Args:
        per_seed: One array per seed, one value per example, `[n_s]`.
        ids: Which example each value belongs to, `[n_s]`; ids of groups where copies are kept together.
        step: The most that one example can change, 0 for continuous values; see `sampling_error`.

    Returns:
        The contrast, with S - 1 degrees of freedom. Values that are not finite make it NaN; no test passes then.
    """
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, which is what is asked for next
        means = np.array([np.mean(values) for values in per_seed], dtype=np.float64)
    if not np.isfinite(means).all():
        return Contrast(math.nan, math.nan, len(means) - 1)
    terms = [(1 / len(means), values, own) for values, own in zip(per_seed, ids, strict=True)]
    sampling = sampling_error(terms, step)
    return combine(means, sampling, lasting_error(terms, sampling))
