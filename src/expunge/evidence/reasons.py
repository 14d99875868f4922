"""The sentences under a verdict: what the run found, or what it could not see and what would decide it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from expunge.evidence.comparison import Row
from expunge.evidence.contrast import MOST_SEEDS, Contrast
from expunge.evidence.guards import AttackGuard
from expunge.evidence.intervals import LEVEL, t_quantile
from expunge.evidence.quantity import Quantity
from expunge.evidence.utility import UtilityRow

Need = tuple[Contrast, float, float]
"""A contrast, the half-width that it must fall below, and the one-sided level of that half-width."""

ROUNDED = 1e-12
"""Smaller values are rounding errors and are shown as 0."""
MOST_EXAMPLES = 100_000
"""A forecast of more examples than this only shows that the value lies at the bound."""
NO_RETRAINING = (
    "Held-out examples replace retrained models, so no model can be called erased. A forget set that was not drawn at "
    "random may differ from held-out examples even without training."
)
GIVEN_REFERENCES = (
    "The references are models that the user gave. That they never saw the forget set is not proven: only their "
    "weights and their accuracy were compared with the original's."
)
SEE_DEGREES = "An audit that sees degrees in each example can accuse with fewer: add an [[audit]], `u_lira` or `loss`."
CHANGED_NOTHING = "this method changed nothing: every weight is that of the model that it started from."
NOT_A_GUARANTEE = "This is an empirical pass of these audits and attacks, not a guarantee."


def number(x: float) -> str:
    """The number with three digits, enough for an interval over a few seeds; rounding errors around 0 are 0."""
    return f"{0.0 if abs(x) < ROUNDED else x:.3g}"


def changed_nothing(seeds: Sequence[int], of: int) -> str:
    """The sentence about a method that changed no weight, in some of the runs or in all."""
    if len(seeds) < of:
        return f"In {len(seeds)} of {of} seeds ({', '.join(map(str, seeds))}), {CHANGED_NOTHING}"
    return CHANGED_NOTHING[0].upper() + CHANGED_NOTHING[1:]


def not_read(layer: str) -> str:
    """The sentence about a method that kept the lower layers, while every audit read what lies above them."""
    return (
        f"'{layer}' and all layers below it are the original's, bit for bit, and no audit read what they still know: "
        f'add an [[audit]] `probe` with layer = "{layer}", or `patching` of a layer that is not above it.'
    )


def points(x: float, unit: str) -> str:
    """A share in points, which are hundredths; any other unit with three digits."""
    if unit != "share" or not math.isfinite(x):
        return number(x)
    return f"{0.0 if abs(x) < ROUNDED else 100 * x:.1f}"


def interval(contrast: Contrast, unit: str, reach: float = 1.0) -> str:
    """Value and 90 % interval, shares in points.

    Args:
        contrast: The value.
        unit: Unit of the value.
        reach: The largest share that is possible; an interval is cut there.
    """
    word = " points" if unit == "share" else f" {unit}" if unit else ""
    low, high = (points(end, unit) for end in possible(contrast.low, contrast.high, unit, reach))
    return f"{points(contrast.mean, unit)}{word} [{low}, {high}]"


def possible(low: float, high: float, unit: str, reach: float = 1.0) -> tuple[float, float]:
    """An interval of a difference without what is impossible: a share cannot change by more than `reach`."""
    return (max(low, -reach), min(high, reach)) if unit == "share" else (low, high)


def name_of(quantity: Quantity) -> str:
    """Names the audit's metric and its split."""
    return f"{quantity.metric} on {quantity.split}"


def label(row: Row | UtilityRow) -> str:
    """Names the audit, its split and its attack."""
    return f"{name_of(row.quantity)} {_when(row.attack)}"


def _when(attack: str | None) -> str:
    return "before any attack" if attack is None else f"after {attack}"


def dormant(row: Row) -> str:
    """Why a row is dormant."""
    unit = row.quantity.unit
    gain = "" if row.gain is None else f" and gain {interval(row.gain, unit, 2.0)}"
    return f"{label(row)}: residual {interval(row.residual, unit)}{gain} both exceed the margin {_margin(row)}."


def incomplete(row: Row) -> str:
    """Why a row is incomplete."""
    return f"{label(row)}: {_residual(row)} exceeds the margin {_margin(row)}."


def over_forgotten(row: Row) -> str:
    """Why a row is over-forgotten."""
    return f"{label(row)}: {_residual(row)} lies below minus the margin, {points(-row.margin, row.quantity.unit)}."


def _residual(row: Row) -> str:
    return f"residual {interval(row.residual, row.quantity.unit)}"


def _margin(row: Row) -> str:
    return points(row.margin, row.quantity.unit)


def damaged(row: UtilityRow, against: str) -> str:
    """Why a model is damaged."""
    return f"{_difference(row, against)}, wholly below {_bound(row)}."


def _bound(row: UtilityRow) -> str:
    return points(-row.quantity.bound, row.quantity.unit)


def _difference(row: UtilityRow, against: str) -> str:
    of = "" if row.label is None else f", label {row.label}"
    return f"{label(row)}{of}: unlearned minus {against} is {interval(row.difference, row.quantity.unit)}"


def void(guard: AttackGuard) -> str:
    """Why an attack accuses nobody and clears nobody."""
    harm = "" if guard.harm is None else interval(guard.harm, guard.unit)
    return (
        f"{guard.attack} destroyed models that never knew the forget set: their {guard.metric} changed by "
        f"{harm}, wholly below {points(guard.limit, guard.unit)}. What it shows counts neither for nor against the "
        "model. Weaken the attack, for example its learning_rate."
    )


def unclear(guard: AttackGuard) -> str:
    """Why an attack does not clear a model."""
    if guard.harm is None:
        return f"No utility was measured after {guard.attack}, so the attack may have destroyed every model."
    return (
        f"{guard.attack} may have destroyed models that never knew the forget set: their {guard.metric} changed by "
        f"{interval(guard.harm, guard.unit)}, which does not exclude {points(guard.limit, guard.unit)}. Weaken the "
        "attack, or use more seeds."
    )


def idle(guard: AttackGuard) -> str:
    """Why an attack that did nothing does not clear a model."""
    return f"{guard.attack} changed no answer of any model, so it looked for nothing. Strengthen the attack."


def no_skill(attack: str | None, skill: Contrast) -> str:
    """Why knowledge is not judged."""
    return (
        f"{_when(attack).capitalize()} the model answers almost alike whatever the input: its skill minus a tenth of "
        f"that of retrained models is {interval(skill, 'share')}. Its answers on the forget set are no sign of "
        "knowledge."
    )


def erased(rows: Sequence[Row]) -> list[str]:
    """Why a model is erased."""
    return [f"{label(row)}: {_residual(row)} is equivalent to retraining within {_margin(row)}." for row in rows] + [
        NOT_A_GUARANTEE
    ]


def undecided_utility(row: UtilityRow, against: str, units: str, family: int) -> str:
    """Why utility is neither damaged nor kept; `family` is Holm's largest factor."""
    difference = row.difference
    if not math.isfinite(difference.mean):
        return f"{label(row)}: the values are not finite."
    need = (row.spare, abs(row.spare.mean), LEVEL if row.spare.mean > 0 else LEVEL / (family * row.tests))
    decides = _ending(_decides([need], None, units))
    if row.label is None:
        return f"{_difference(row, against)}, not wholly above {_bound(row)}; {decides}"
    kept = f"unlearned minus half of {against} is {interval(row.spare, row.quantity.unit)}, not wholly above 0"
    return f"{_difference(row, against)}; {kept}; {decides}"


def _ending(advice: str) -> str:
    return advice if advice.endswith(".") else f"{advice}."


def undecided(row: Row, units: str, family: int) -> str:
    """Why a row decides nothing: the smallest gap it could have excluded, and how many seeds or examples would decide.

    Args:
        row: A row that is neither equivalent nor accused.
        units: What more of would be run, `seeds` or `references`.
        family: Holm's largest factor for an accusation.

    Returns:
        One sentence.
    """
    if not math.isfinite(row.residual.mean):
        return f"{label(row)}: the values are not finite."
    if row.range.mean <= 0:
        return f"{label(row)}: there was nothing to forget; {smallest_gap(row)}."
    decides = _decides(needs(row, family), row, units)
    return f"{label(row)}: {_residual(row)}{_alone(row, family)}; {smallest_gap(row)}; {_ending(decides)}"


def _alone(row: Row, family: int) -> str:
    """Why a row is not accused although its own interval lies outside the margin; empty if it does not."""
    above, below = row.over.p_above(0) <= LEVEL, row.under.p_below(0) <= LEVEL
    if not (row.seen and (above or below)):
        return ""
    side = "above the margin" if above else "below minus the margin"
    return f" lies {side}, but not clearly enough for one of {family} tests (Holm's correction over all accusations)"


def smallest_gap(row: Row) -> str:
    """The smallest gap that the row could have excluded if there had been none."""
    if not math.isfinite(row.residual.half_width):
        return "this run could have excluded no gap"
    unit = row.quantity.unit
    clause = f"the smallest gap this run could have excluded is {points(row.residual.half_width, unit)}"
    if not row.seen:
        return f"{clause}, and the range {interval(row.range, unit)} is not above 0"
    return f"{clause}, the margin is {_margin(row)}"


def passing(rows: Sequence[Row]) -> list[str]:
    """One sentence about the rows that are no reason for the verdict; none if there are no such rows."""
    listed = "; ".join(f"{label(row)} ({smallest_gap(row)})" for row in rows)
    return [f"What passes: {listed}."] if listed else []


def needs(row: Row, family: int) -> list[Need]:
    """The half-widths at which the row passes or is accused, if the means stay as they are."""
    span = (row.range, row.range.mean, LEVEL)
    # Holm: the first of several accusations must hold at the level divided by their number.
    if row.over.mean > 0:
        return [span, (row.over, row.over.mean, LEVEL / family)]
    if row.under.mean < 0:
        return [span, (row.under, -row.under.mean, LEVEL / family)]
    whole = (row.residual, row.margin, LEVEL)
    return [span, whole, (row.over, -row.over.mean, LEVEL), (row.under, row.under.mean, LEVEL)]


def _decides(wanted: Sequence[Need], row: Row | None, units: str) -> str:
    if any(not math.isfinite(contrast.se) for contrast, _, _ in wanted):
        return f"at least 3 {units} are needed to tell"
    counts = [contrast.seeds_needed(distance, level) for contrast, distance, level in wanted]
    known = [count for count in counts if count is not None]
    if len(known) == len(wanted):
        return f"about {max(known)} {units} would decide"
    if any(contrast.limited_by_examples(distance, level) for contrast, distance, level in wanted):
        return _more_examples(wanted, row, units)
    if any(contrast.drawn for contrast, _, _ in wanted):
        return "the scatter of retrained models, not their number, is the limit"
    return f"more than {MOST_SEEDS} {units} would be needed to decide"


def _more_examples(wanted: Sequence[Need], row: Row | None, units: str) -> str:
    if row is None:
        return f"the number of test examples, not of {units}, is the limit: give the case more of them"
    limit = f"the number of forget examples, {row.quantity.examples}, not of {units}, is the limit"
    limit += f". {SEE_DEGREES}"
    if any(distance <= 0 for _, distance, _ in wanted):
        return limit
    # Errors over examples decrease with the square root of their number.
    ratios = [t_quantile(c.examples_df, level) * c.sampling / distance for c, distance, level in wanted]
    needed = row.quantity.examples * max(ratios) ** 2
    if needed > MOST_EXAMPLES:
        return f"{limit} The value lies so close to the bound that even {MOST_EXAMPLES:,} examples would not decide."
    return f"{limit} If several requests can be joined, about {_rounded_up(needed)} examples would decide."


def _rounded_up(x: float) -> int:
    # Two digits, since the forecast is no more precise.
    if x < 10:
        return math.ceil(x)
    unit = int(10 ** (math.floor(math.log10(x)) - 1))
    return math.ceil(x / unit) * unit


@dataclass(frozen=True)
class Deciders:
    """What would decide an `inconclusive` verdict, read from its reasons."""

    seeds: int | None
    """Seeds, or references of one model, that would decide all that seeds can decide; none if there is no such row."""
    forget: int | None
    """Scored forget examples that would decide, where their number is the limit; none if that is not known."""
    limits: frozenset[str]
    """What else holds a verdict back: `forget` or `test` for too few examples, `attack`, `reference`, or `nothing` if
    no number of seeds is in sight."""
    unread: str = ""
    """The layer that a probe should read, because the method kept it and all layers below."""


_SEEDS = re.compile(r"about (\d+) (?:seeds|references) would decide")
_FORGET = re.compile(r"about (\d+) examples would")
_UNREAD = re.compile(r"^'(.+)' and all layers below it are the original's")
_AT_LEAST = re.compile(r"at least (\d+) (?:seeds|references)")
_LIMITS = {
    "the number of forget examples": "forget",
    "the number of test examples": "test",
    "No attack was run": "attack",
    "No attack that trains": "attack",
    "so the attack may have destroyed": "attack",
    "may have destroyed models": "attack",
    "Held-out examples replace": "reference",
    "not their number, is the limit": "nothing",
    "would be needed to decide": "nothing",
}
"""Words of a reason -> what limits the run."""


def deciding(sentences: Sequence[str]) -> Deciders:
    """What would decide the verdict under which these sentences stand."""
    text = [sentence for sentence in sentences if not sentence.startswith("What passes")]
    seeds = [int(count) for pattern in (_SEEDS, _AT_LEAST) for s in text for count in pattern.findall(s)]
    forget = [int(count) for sentence in text for count in _FORGET.findall(sentence)]
    limits = {limit for words, limit in _LIMITS.items() if any(words in sentence for sentence in text)}
    unread = [layer for sentence in text for layer in _UNREAD.findall(sentence)]
    return Deciders(max(seeds, default=None), max(forget, default=None), frozenset(limits), *unread[:1])
