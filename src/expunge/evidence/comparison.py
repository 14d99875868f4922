"""From a quantity to the contrasts that verdicts test, for each of the three kinds of claim.

With o the original, r the reference and m the unlearned model:

    range     o - r                          what there was to forget; the margin is a tenth of it
    residual  m - r                          what is left, before an attack or after the same attack on both
    gain      (m after - m) - (r after - r)  what the attack brought back beyond what it teaches any model

Verdicts test whether the residual exceeds the margin or is equivalent to 0 within it. Both tests use
residual -/+ 0.1 range, which avoids a ratio and includes the noise of the range.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from expunge.base.errors import SpecError
from expunge.evidence.contrast import (
    Contrast,
    alone,
    combine,
    contrast,
    distinct,
    lasting_error,
    sampling_error,
    step_of,
)
from expunge.evidence.intervals import LEVEL, Floats
from expunge.evidence.quantity import Quantity

SHARE = 0.1
"""The margin as a share of the range."""

Weights = dict[str, float]
Design = Callable[[Quantity, str | None, Weights, float], Contrast]
"""(quantity, attack, weights, share) -> the weighted sum of the values by name, plus `share` of the range."""

RANGE: Weights = {"original": 1.0, "reference": -1.0}
BEFORE: Weights = {"unlearned": 1.0, "reference": -1.0}
AFTER: Weights = {"unlearned_after": 1.0, "reference_after": -1.0}
GAIN: Weights = {"unlearned_after": 1.0, "unlearned": -1.0, "reference_after": -1.0, "reference": 1.0}


@dataclass(frozen=True)
class Row:
    """One knowledge audit, before any attack or after one of them."""

    quantity: Quantity
    attack: str | None
    range: Contrast
    residual: Contrast
    over: Contrast
    """Residual minus the margin."""
    under: Contrast
    """Residual plus the margin."""
    gain: Contrast | None
    """Only after an attack."""
    gain_over: Contrast | None
    """Gain minus the margin."""

    @property
    def margin(self) -> float:
        """The smallest gap that counts, in the unit of the quantity: a tenth of the range."""
        return SHARE * self.range.mean

    @property
    def seen(self) -> bool:
        """Whether the range lies above 0. If there was nothing to forget, no model is accused."""
        return self.range.low > 0

    @property
    def power(self) -> bool:
        """Whether the audit could have distinguished a gap as large as the margin from no gap."""
        return self.seen and self.margin > self.residual.half_width

    @property
    def equivalent(self) -> bool:
        """Whether the residual lies within the margin: two one-sided tests, each at 5 %."""
        return self.over.p_below(0) <= LEVEL and self.under.p_above(0) <= LEVEL

    @property
    def passes(self) -> bool:
        """Whether the row meets what `erased` requires: power and equivalence."""
        return self.power and self.equivalent


def rows_of(quantity: Quantity, design: Design) -> list[Row]:
    """The rows of a knowledge quantity: before any attack first, then each attack in the order given."""
    span = design(quantity, None, RANGE, 0.0)
    rows = []
    for attack in (None, *quantity.attacked):
        residual = BEFORE if attack is None else AFTER
        gains = attack is not None
        rows.append(
            Row(
                quantity=quantity,
                attack=attack,
                range=span,
                residual=design(quantity, attack, residual, 0.0),
                over=design(quantity, attack, residual, -SHARE),
                under=design(quantity, attack, residual, SHARE),
                gain=design(quantity, attack, GAIN, 0.0) if gains else None,
                gain_over=design(quantity, attack, GAIN, -SHARE) if gains else None,
            )
        )
    return rows


def over_method(quantity: Quantity, attack: str | None, weights: Weights, share: float) -> Contrast:
    """The claim about a method: the seeds are the sample; within a seed, models are compared example by example.

    Raises:
        SpecError: Originals and references differ in number, or were not scored on the same examples.
    """
    seeds = len(quantity.unlearned)
    if len(quantity.reference) != seeds or quantity.reference_ids is not None:
        raise SpecError(
            f"found {len(quantity.reference)} references for {seeds} seeds",
            where=quantity.metric,
            allowed="one reference per seed, on the examples of its original",
        )
    full = _add(weights, share)
    mixed = [_mix(quantity, attack, full, index) for index in range(seeds)]
    step = step_of(full.values(), quantity.step)
    return contrast(mixed, [quantity.ids_of("unlearned", index) for index in range(seeds)], step=step)


def over_model(quantity: Quantity, attack: str | None, weights: Weights, share: float) -> Contrast:
    """The claim about one model: could it be one more draw from the retrained models?

    The interval is a prediction interval: the error between models is s sqrt(1 + 1/n), with s the standard deviation of
    n references, and the error over examples is joined with it as for seeds. More references make their mean more
    precise, but not the one model that is judged. The margin enters as a number without error.

    Raises:
        SpecError: There is more than one unlearned model.
    """
    if len(quantity.unlearned) != 1:
        raise SpecError(f"found {len(quantity.unlearned)} unlearned models", where=quantity.metric, allowed="exactly 1")
    count = len(quantity.reference)
    judged = _mix(quantity, attack, _part(weights, references=False), 0)
    references = [_mix(quantity, attack, _part(weights, references=True), index) for index in range(count)]
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, and NaN passes no test
        means = np.array([values.mean() for values in references])
        span = quantity.original[0].mean() - np.mean([values.mean() for values in quantity.reference])
        mean = float(judged.mean() + means.mean() + share * span)
    if not math.isfinite(mean):
        return Contrast(math.nan, math.nan, count - 1)
    terms = [(1 / count, values, quantity.ids_of("reference", index)) for index, values in enumerate(references)]
    step = step_of(weights.values(), quantity.step)
    sampling = sampling_error([(1.0, judged, quantity.ids_of("unlearned", 0)), *terms], step)
    lasting = lasting_error(terms, sampling)
    spread = float(np.std(means, ddof=1)) if count > 1 else math.nan
    examples = distinct([quantity.ids_of("unlearned", 0), *(ids for _, _, ids in terms)])
    return Contrast(
        mean,
        spread * math.sqrt(1 + 1 / count),
        count - 1,
        spread,
        sampling,
        lasting,
        max(examples - 1, 1),
        drawn=True,
    )


def over_held_out(quantity: Quantity, attack: str | None, weights: Weights, share: float) -> Contrast:
    """The claim without references: unseen examples replace the reference, so that values are not paired.

    One model has no scatter over seeds. Its error is the error over examples, with the degrees of freedom of the
    smaller sample.
    """
    full, seeds = _add(weights, share), len(quantity.unlearned)
    names = ["unlearned"] if quantity.reference_ids is None else ["unlearned", "reference"]
    parts = [full] if len(names) == 1 else [_part(full, references=False), _part(full, references=True)]
    samples = [
        [(_mix(quantity, attack, part, index), quantity.ids_of(name, index)) for index in range(seeds)]
        for name, part in zip(names, parts, strict=True)
    ]
    halves = [
        contrast([v for v, _ in sample], [i for _, i in sample], step=step_of(part.values(), quantity.step))
        for sample, part in zip(samples, parts, strict=True)
    ]
    sampling = math.sqrt(sum(half.sampling**2 for half in halves))
    if not all(math.isfinite(half.mean) for half in halves):
        return Contrast(math.nan, math.nan, seeds - 1)
    fewest = min(np.unique(ids).size for sample in samples for _, ids in sample)
    if seeds > 1:
        means = np.array([[values.mean() for values, _ in sample] for sample in samples])
        return combine(means.sum(axis=0), sampling, math.sqrt(sum(half.lasting**2 for half in halves)), fewest)
    return alone(sum(half.mean for half in halves), sampling, fewest)


def _add(weights: Weights, share: float) -> Weights:
    names = weights.keys() | (RANGE.keys() if share else set())
    # Sorted, because the order of a set changes between processes and would change the last bit of a sum.
    return {name: weights.get(name, 0.0) + share * RANGE.get(name, 0.0) for name in sorted(names)}


def _part(weights: Weights, *, references: bool) -> Weights:
    return {name: weight for name, weight in weights.items() if name.startswith("reference") == references}


def _mix(quantity: Quantity, attack: str | None, weights: Weights, index: int) -> Floats:
    with np.errstate(invalid="ignore"):  # inf - inf, as in over_model
        parts = [weight * quantity.values(name, attack)[index] for name, weight in weights.items()]
        return np.asarray(np.sum(parts, axis=0), dtype=np.float64)
