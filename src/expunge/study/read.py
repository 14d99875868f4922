"""Read one seed's numbers from a run's scores: values, paired gaps with errors over examples, rank correlations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from expunge.base.errors import SpecError
from expunge.evidence.estimate import is_binary
from expunge.evidence.intervals import Floats, contrast
from expunge.evidence.scores import Scores
from expunge.evidence.table import ORIGINAL, REFERENCE, Table

Key = tuple[str, str]
FORGET: Key = ("accuracy", "forget")
TEST: Key = ("accuracy", "test")
END: Key = ("known_at_end", "forget")


class Gap(NamedTuple):
    """A difference between two models on the same examples, with its standard error over the examples."""

    value: float
    se: float


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
        last, first = self.scores(model, END, attack), self.scores(model, FORGET, None)
        return _contrast([(1.0, last), (-1.0, first)])

    def weighted(self, terms: Sequence[tuple[float, str]], key: Key) -> Gap:
        """A weighted sum of models' values before any attack, example by example."""
        return self._paired([(weight, model, None) for weight, model in terms], key)

    def _paired(self, terms: Sequence[tuple[float, str, str | None]], key: Key) -> Gap:
        return _contrast([(weight, self.scores(model, key, attack)) for weight, model, attack in terms])


def _contrast(terms: Sequence[tuple[float, Scores]]) -> Gap:
    first = terms[0][1]
    if not all(np.array_equal(scores.ids, first.ids) for _, scores in terms):
        raise SpecError("models were scored on different examples", where=f"{first.metric} on {first.split}")
    mixed: Floats = np.sum([weight * scores.values for weight, scores in terms], axis=0)
    # For binary values, the largest change that one example can cause.
    step = sum(abs(weight) for weight, _ in terms) if all(is_binary(scores.values) for _, scores in terms) else 0.0
    estimate = contrast([mixed], [first.draws], step=step)
    return Gap(estimate.mean, estimate.sampling)


def with_error(name: str, gaps: Mapping[str, Gap] | Gap) -> dict[str, Any]:
    """A claim's number with its standard error; or its array, with the names of the components."""
    if isinstance(gaps, Gap):
        return {name: gaps.value, f"{name}.se": gaps.se}
    return array(name, {of: gap.value for of, gap in gaps.items()}) | {f"{name}.se": [g.se for g in gaps.values()]}


def array(name: str, values: Mapping[str, float]) -> dict[str, Any]:
    """A claim's array, with the names of the components."""
    return {name: list(values.values()), f"{name}.of": list(values)}


def mean_gap(gaps: Sequence[Gap]) -> Gap:
    """The mean of gaps on the same examples; the mean of their errors bounds its error, whatever their correlation."""
    return Gap(float(np.mean([gap.value for gap in gaps])), float(np.mean([gap.se for gap in gaps])))


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation; 0 if one side is constant, because a constant ranks nothing."""
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return math.nan
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(stats.spearmanr(x, y).statistic)
