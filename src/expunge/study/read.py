"""Read one seed's numbers from a run's scores: values, paired gaps with errors over examples, rank correlations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from expunge.base.errors import SpecError
from expunge.evidence.contrast import contrast, distinct, step_of
from expunge.evidence.estimate import is_binary
from expunge.evidence.intervals import Floats
from expunge.evidence.scores import Scores
from expunge.evidence.table import ORIGINAL, REFERENCE, Table

Key = tuple[str, str]
FORGET: Key = ("accuracy", "forget")
TEST: Key = ("accuracy", "test")
END: Key = ("known_at_end", "forget")


class Gap(NamedTuple):
    """One seed's difference between models on the same examples, with the errors over examples of all seeds' mean."""

    value: float
    sampling: float
    """Standard error over examples of the mean over the run's seeds."""
    lasting: float
    """The part of it that more seeds would not reduce."""
    examples: int
    """Number of distinct examples."""


@dataclass(frozen=True)
class OfSeed:
    """A seed's part of a table."""

    table: Table
    seed: int

    def scores(self, model: str, key: Key, attack: str | None = None) -> Scores:
        """The scores of a model under a metric and split, after an attack.

        Raises:
            SpecError: They were not measured.
        """
        scores = self.table.get(model, self.seed, attack, key)
        if scores is None:
            raise SpecError(f"{key[0]} on {key[1]} was not measured", where=f"{model}, after {attack}")
        return scores

    def value(self, model: str, key: Key, attack: str | None = None) -> float:
        """One number, in the metric's unit."""
        return self.scores(model, key, attack).reduced()

    def gap(self, model: str, other: str = REFERENCE, key: Key = FORGET, attack: str | None = None) -> Gap:
        """The model minus the other, both after the same attack, example by example."""
        return self._paired([(1.0, model, attack), (-1.0, other, attack)], key)

    def gain(self, model: str, attack: str, key: Key = FORGET) -> Gap:
        """The gain of a model by an attack, minus the gain of the reference by the same attack."""
        terms = [(1.0, model, attack), (-1.0, model, None), (-1.0, REFERENCE, attack), (1.0, REFERENCE, None)]
        return self._paired(terms, key)

    def change(self, model: str, attack: str, key: Key = FORGET) -> Gap:
        """The model after an attack minus the model before it."""
        return self._paired([(1.0, model, attack), (-1.0, model, None)], key)

    def between(self, model: str, attack: str, other: str, key: Key = FORGET) -> Gap:
        """The difference between two attacks on a model, minus their difference on the reference."""
        terms = [(1.0, model, attack), (-1.0, model, other), (-1.0, REFERENCE, attack), (1.0, REFERENCE, other)]
        return self._paired(terms, key)

    def margin(self, model: str, attack: str | None, side: float, key: Key = FORGET) -> Gap:
        """The gap to the reference after the same attack, minus `side` times the range of original and reference.

        Verdicts test this linear contrast, with 0.1 for remaining knowledge and -0.1 for over-forgetting.
        """
        terms = [(1.0, model, attack), (-1.0, REFERENCE, attack), (-side, ORIGINAL, None), (side, REFERENCE, None)]
        return self._paired(terms, key)

    def end(self, model: str, attack: str) -> Gap:
        """The forget set's known share at the end of an attack, not at its peak, minus that before it."""
        return self._contrast([(1.0, model, END, attack), (-1.0, model, FORGET, None)])

    def weighted(self, terms: Sequence[tuple[float, str]], key: Key) -> Gap:
        """A weighted sum of models' values before any attack, example by example."""
        return self._paired([(weight, model, None) for weight, model in terms], key)

    def _paired(self, terms: Sequence[tuple[float, str, str | None]], key: Key) -> Gap:
        return self._contrast([(weight, model, key, attack) for weight, model, attack in terms])

    def _contrast(self, terms: Sequence[tuple[float, str, Key, str | None]]) -> Gap:
        seeds = [replace(self, seed=seed) for seed in self.table.seeds]
        per_seed = [[seed.scores(model, key, attack) for _, model, key, attack in terms] for seed in seeds]
        weights = [weight for weight, *_ in terms]
        mixed = [_mixed(weights, scores) for scores in per_seed]
        binary = all(is_binary(entry.values) for scores in per_seed for entry in scores)
        step = step_of(weights, 1.0 if binary else 0.0)
        estimate = contrast(mixed, [scores[0].draws for scores in per_seed], step=step)
        own = float(mixed[list(self.table.seeds).index(self.seed)].mean())
        return Gap(own, estimate.sampling, estimate.lasting, distinct([scores[0].draws for scores in per_seed]))


def _mixed(weights: Sequence[float], scores: Sequence[Scores]) -> Floats:
    first = scores[0]
    if not all(np.array_equal(entry.ids, first.ids) for entry in scores):
        raise SpecError("models were scored on different examples", where=f"{first.metric} on {first.split}")
    pairs = zip(weights, scores, strict=True)
    return np.asarray(np.sum([weight * entry.values for weight, entry in pairs], axis=0), dtype=np.float64)


def with_error(name: str, gaps: Mapping[str, Gap] | Gap) -> dict[str, Any]:
    """A claim's number with its errors over examples; or its array, with the names of the components."""
    if isinstance(gaps, Gap):
        return {name: gaps.value, **{f"{name}.{part}": getattr(gaps, part) for part in Gap._fields[1:]}}
    errors: dict[str, Any] = {
        f"{name}.{part}": [getattr(gap, part) for gap in gaps.values()] for part in ("sampling", "lasting")
    }
    errors[f"{name}.examples"] = min(gap.examples for gap in gaps.values())
    return array(name, {of: gap.value for of, gap in gaps.items()}) | errors


def array(name: str, values: Mapping[str, float]) -> dict[str, Any]:
    """A claim's array, with the names of the components."""
    return {name: list(values.values()), f"{name}.of": list(values)}


def mean_gap(gaps: Sequence[Gap]) -> Gap:
    """The mean of gaps on the same examples; the mean of their errors bounds its error, whatever their correlation."""
    value, sampling, lasting = (float(np.mean([gap[part] for gap in gaps])) for part in range(3))
    return Gap(value, sampling, lasting, min(gap.examples for gap in gaps))


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation; 0 if one side is constant, because a constant ranks nothing."""
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return math.nan
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(stats.spearmanr(x, y).statistic)
