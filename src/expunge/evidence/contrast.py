"""The uncertainty of a mean over seeds and examples. Tests are one-sided at 5 %, so intervals are 90 % intervals.

A contrast is a mean over seeds of means over examples. Seeds and examples are two sources of error, and both enter.
Each has its own Student's t, and the two half-widths are joined in quadrature:

    half-width   max(sqrt((t_{S-1} between)^2 + (t_{G-1} lasting)^2), t_{G-1} sampling)
    between      spread / sqrt(S), where spread is the standard deviation of the seed means
    sampling     sqrt(sum_g u_g^2 + 2 c^2 / (G + 2)^2),   u_g = sum_{s, i = g} (d_si - mean_s) / (S n_s)

with S seeds, seed s having n_s examples, and G distinct examples. `u_g` sums everything that example g contributes, in
all seeds in which it appears. If every seed has the same examples, `sampling` is sd / sqrt(n) of the averages per
example: measuring the same examples again is no new evidence. If each seed has other examples, it is the error of
independent means. If seeds share some examples, it lies between the two. `sampling_error` explains the second term; c
is the step, see `step_of`.

`lasting` is the part of `sampling` that is the same in every seed. The scatter of the seed means cannot show it, so it
is added. The rest of `sampling` is in that scatter already. But a few seeds may agree by chance, so `sampling` gives
the lower bound. A p-value is the level at which the bound of the interval meets the tested value. In simulations the
error rate is at most the nominal one, from 3 to 20 seeds and down to levels of 0.3 % (tests/oracles).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from expunge.evidence.intervals import LEVEL, Floats, Ints, t_quantile

Term = tuple[float, Floats, Ints]
"""A weighted mean over examples: weight, values `[n]`, ids `[n]`."""

SMALLEST_P = 1e-15
"""Smaller p-values are not told apart."""
MOST_SEEDS = 1000
"""More seeds than this are not a useful recommendation."""


@dataclass(frozen=True)
class Contrast:
    """A mean and the parts of its error."""

    mean: float
    between: float
    """Standard error between seeds, or between models; NaN if there is only one."""
    df: float
    """Degrees of freedom of `between`: seeds minus one."""
    spread: float = math.nan
    """Standard deviation of the means of seeds, or of references; NaN if there is only one."""
    sampling: float = 0.0
    """Standard error over examples."""
    lasting: float = 0.0
    """The part of `sampling` that more seeds would not reduce, because they would measure the same examples again."""
    examples_df: float = math.inf
    """Degrees of freedom of `sampling`: distinct examples minus one, at least 1."""
    drawn: bool = False
    """Whether one model is compared with a population. Its own scatter stays, however many references there are."""

    @property
    def se(self) -> float:
        """Standard error from both sources."""
        return float(np.maximum(math.hypot(self.between, self.lasting), self.sampling))

    def half_width_at(self, level: float) -> float:
        """Half the width of the interval whose ends are each exceeded at this rate."""
        examples = t_quantile(self.examples_df, level)
        both = math.hypot(t_quantile(self.df, level) * self.between, examples * self.lasting)
        # Not max(): whether it returns a NaN depends on the order of its arguments.
        return float(np.maximum(both, examples * self.sampling))

    @property
    def half_width(self) -> float:
        """Half the width of the 90 % interval."""
        return self.half_width_at(LEVEL)

    @property
    def low(self) -> float:
        """Lower bound, one-sided at 5 %."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """Upper bound, one-sided at 5 %."""
        return self.mean + self.half_width

    def p_above(self, x: float) -> float:
        """The p-value of "the mean is at most `x`": small if the mean lies above `x`; 1 if it cannot be computed."""
        distance = self.mean - x
        if math.isnan(distance) or math.isnan(self.half_width):
            return 1.0
        if self.se == 0:
            return 0.0 if distance > 0 else 1.0
        return self._tail(distance) if distance >= 0 else 1.0 - self._tail(-distance)

    def p_below(self, x: float) -> float:
        """The p-value of "the mean is at least `x`": small if the mean lies below `x`; 1 if it cannot be computed."""
        return replace(self, mean=-self.mean).p_above(-x)

    def _tail(self, distance: float) -> float:
        """The level at which the half-width is `distance`, at most 0.5."""
        if self.lasting == 0:  # the half-width is the larger of two quantiles, and so is the level
            between = _t_tail(self.df, distance, self.between)
            return max(between, _t_tail(self.examples_df, distance, self.sampling))

        def excess(exponent: float) -> float:
            return self.half_width_at(math.exp(exponent)) - distance

        lowest, highest = math.log(SMALLEST_P), math.log(0.5)
        if excess(lowest) <= 0:
            return SMALLEST_P
        return math.exp(optimize.brentq(excess, lowest, highest, xtol=1e-12)) if excess(highest) < 0 else 0.5

    def seeds_needed(self, distance: float, level: float = LEVEL) -> int | None:
        """How many seeds make the half-width smaller than `distance`, if spread and sampling stay as they are.

        Args:
            distance: The value that has to be distinguished from 0.
            level: One-sided error rate; smaller if several tests share it.

        Returns:
            The number, at least as many as now; `None` if no number up to `MOST_SEEDS` suffices.
        """
        seeds = np.arange(max(3, int(self.df) + 1), MOST_SEEDS + 1)
        over_examples = t_quantile(self.examples_df, level)
        between = -special.stdtrit(seeds - 1, level) * self.spread * np.sqrt(1 / seeds + self.drawn)
        passing = max(self.sampling**2 - self.lasting**2, 0.0) * (self.df + 1) / seeds
        within = over_examples * np.sqrt(self.lasting**2 + passing)
        enough = np.maximum(np.hypot(between, over_examples * self.lasting), within) < distance
        return int(seeds[np.argmax(enough)]) if enough.any() else None

    def limited_by_examples(self, distance: float, level: float = LEVEL) -> bool:
        """Whether the sampling error alone keeps the half-width above `distance`, however many seeds are run."""
        alone = self.sampling if math.isnan(self.spread) else self.lasting
        return t_quantile(self.examples_df, level) * alone >= distance


def _t_tail(df: float, distance: float, se: float) -> float:
    return float(special.stdtr(df, -distance / se)) if se > 0 else 0.0


def sampling_error(terms: Sequence[Term], step: float = 0.0) -> float:
    """Standard error over examples of a sum of weighted means; all contributions of one example form a cluster.

    Suppose the values are counts, such as right or wrong, recited or not. Two models that agree on every example have a
    variance of 0. Yet n agreements cannot exclude that one example in n / 3 would have differed. So two imaginary
    examples are added that differ by the whole `step`, one in each direction. For paired 0/1 values that all agree,
    this is the error of Bonett and Price (2012), who add one to each of the two discordant cells. The term decreases as
    1/n and matters only if agreement is nearly perfect.

    Args:
        terms: The weighted means to sum. Equal ids, in one term or in two, mean the same example.
        step: The most that one example can change, in the unit of the values; 0 for continuous values, whose spread
            is visible in the values themselves.

    Returns:
        The standard error; 0 for single numbers, whose error over examples is unknown.
    """
    clusters = _contributions(terms)[0].sum(axis=0)
    return math.sqrt(float(clusters @ clusters) + 2 * (step / (clusters.size + 2)) ** 2)


def lasting_error(terms: Sequence[Term], sampling: float) -> float:
    """The part of a sampling error that more terms of the same kind would not reduce.

    The contribution of an example has a mean over terms, which stays, and deviations from it, which average out over
    more terms. Examples that occur in one term only are assumed to be replaced by others in the next term.

    Args:
        terms: The terms that could be more: one per seed, or one per reference.
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
    """What each of G examples adds to the deviation of each of T terms, and whether it occurs in it, both `[T, G]`."""
    first = terms[0][2]
    if all(ids is first for _, _, ids in terms):  # the common case; it avoids sorting all ids again
        names, codes = np.unique(first, return_inverse=True)
        owns = [codes] * len(terms)
    else:
        names, codes = np.unique(np.concatenate([ids for _, _, ids in terms]), return_inverse=True)
        owns = np.split(codes, np.cumsum([ids.size for _, _, ids in terms])[:-1])
    parts, present = [], []
    for (weight, values, _), own in zip(terms, owns, strict=True):
        occurs = np.bincount(own, minlength=names.size) > 0
        draws = int(np.count_nonzero(occurs))
        # Bessel's correction per term: a single seed gives exactly sd / sqrt(n), with n - 1 in the variance.
        scale = weight / values.size * math.sqrt(draws / max(draws - 1, 1))
        parts.append(np.bincount(own, weights=scale * (values - values.mean()), minlength=names.size))
        present.append(occurs)
    return np.stack(parts), np.stack(present)


def combine(means: Floats, sampling: float, lasting: float, examples: float = math.inf) -> Contrast:
    """The contrast of seeds with these means, `[S]`; a single seed has a mean, but no error between seeds.

    Args:
        means: One per seed.
        sampling: Standard error over examples of the mean over seeds.
        lasting: The part of it that more seeds would not reduce.
        examples: Number of distinct examples.
    """
    seeds = len(means)
    spread = float(np.std(means, ddof=1)) if seeds > 1 else math.nan
    between, mean = spread / math.sqrt(seeds), float(np.mean(means))
    return Contrast(mean, between, seeds - 1, spread, sampling, lasting, max(examples - 1, 1))


def alone(mean: float, sampling: float, examples: int) -> Contrast:
    """The contrast of a single model, which has an error over examples only."""
    return Contrast(mean, 0.0, 1, sampling=sampling, lasting=sampling, examples_df=max(examples - 1, 1))


def step_of(weights: Iterable[float], unit: float) -> float:
    """The most that one example can change in a weighted sum of values.

    Args:
        weights: Weight of each model's value in the sum.
        unit: The most that the value of one model can change: 1 for right or wrong; 0 for continuous values.

    Returns:
        `unit` times the larger of the positive and the negative weights: 1 for a difference of two models, 2 for a
        difference of two differences.
    """
    known = list(weights)
    return unit * max(sum(max(weight, 0.0) for weight in known), sum(max(-weight, 0.0) for weight in known))


def contrast(per_seed: Sequence[Floats], ids: Sequence[Ints], *, step: float = 0.0) -> Contrast:
    """The mean over seeds of a value per example, with its error over seeds and examples.

    Args:
        per_seed: One array per seed, one value per example, `[n_s]`.
        ids: Per seed, the example that each value belongs to, `[n_s]`; group ids if copies are kept together.
        step: The most that one example can change, 0 for continuous values; see `sampling_error`.

    Returns:
        The contrast, with S - 1 degrees of freedom. If a value is not finite, it is NaN and no test passes.
    """
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, which the next line detects
        means = np.array([np.mean(values) for values in per_seed], dtype=np.float64)
    if not np.isfinite(means).all():
        return Contrast(math.nan, math.nan, len(means) - 1)
    terms = [(1 / len(means), values, own) for values, own in zip(per_seed, ids, strict=True)]
    sampling = sampling_error(terms, step)
    return combine(means, sampling, lasting_error(terms, sampling), distinct(ids))


def distinct(ids: Sequence[Ints]) -> int:
    """Number of distinct examples in several arrays of ids."""
    first = ids[0]
    return int(np.unique(first if all(own is first for own in ids) else np.concatenate(ids)).size)
