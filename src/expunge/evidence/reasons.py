"""The sentences under a verdict: what the run found, or what it could not see and what would decide it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from expunge.evidence.comparison import Row
from expunge.evidence.contrast import MOST_SEEDS, Contrast
from expunge.evidence.guards import AttackGuard
from expunge.evidence.intervals import LEVEL, t_quantile
from expunge.evidence.quantity import Quantity
from expunge.evidence.utility import UtilityRow

Need = tuple[Contrast, float, float]
"""A contrast, the half-width that it must fall below, and the one-sided level of that half-width."""

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
    return f"{0.0 if abs(x) < 1e-12 else x:.3g}"


def changed_nothing(seeds: Sequence[int], of: int) -> str:
    """The sentence about a method that changed no weight, in some of the runs or in all."""
    if len(seeds) < of:
        return f"In {len(seeds)} of {of} seeds ({', '.join(map(str, seeds))}), {CHANGED_NOTHING}"
    return CHANGED_NOTHING[0].upper() + CHANGED_NOTHING[1:]


def interval(contrast: Contrast) -> str:
    """Value and 90 % interval."""
    return f"{number(contrast.mean)} [{number(contrast.low)}, {number(contrast.high)}]"


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
    gain = "" if row.gain is None else f" and gain {interval(row.gain)}"
    return f"{label(row)}: residual {interval(row.residual)}{gain} both exceed the margin {number(row.margin)}."


def incomplete(row: Row) -> str:
    """Why a row is incomplete."""
    return f"{label(row)}: residual {interval(row.residual)} exceeds the margin {number(row.margin)}."


def over_forgotten(row: Row) -> str:
    """Why a row is over-forgotten."""
    return f"{label(row)}: residual {interval(row.residual)} lies below minus the margin {number(-row.margin)}."


def damaged(row: UtilityRow, against: str) -> str:
    """Why a model is damaged."""
    return f"{_difference(row, against)}, wholly below {number(-row.quantity.bound)}."


def _difference(row: UtilityRow, against: str) -> str:
    of = "" if row.label is None else f", label {row.label}"
    return f"{label(row)}{of}: unlearned minus {against} is {interval(row.difference)}"


def void(guard: AttackGuard) -> str:
    """Why an attack accuses nobody and clears nobody."""
    harm = "" if guard.harm is None else interval(guard.harm)
    return (
        f"{guard.attack} destroyed models that never knew the forget set: their {guard.metric} changed by "
        f"{harm}, wholly below {number(guard.limit)}. What it shows counts neither for nor against the "
        "model. Weaken the attack, for example its learning_rate."
    )


def unclear(guard: AttackGuard) -> str:
    """Why an attack does not clear a model."""
    if guard.harm is None:
        return f"No utility was measured after {guard.attack}, so the attack may have destroyed every model."
    return (
        f"{guard.attack} may have destroyed models that never knew the forget set: their {guard.metric} changed by "
        f"{interval(guard.harm)}, which does not exclude {number(guard.limit)}. Weaken the attack, or use more seeds."
    )


def idle(guard: AttackGuard) -> str:
    """Why an attack that did nothing does not clear a model."""
    return f"{guard.attack} changed no answer of any model, so it looked for nothing. Strengthen the attack."


def no_skill(attack: str | None, skill: Contrast) -> str:
    """Why knowledge is not judged."""
    return (
        f"{_when(attack).capitalize()} the model answers almost alike whatever the input: its skill minus a tenth of "
        f"that of retrained models is {interval(skill)}. Its answers on the forget set are no sign of knowledge."
    )


def erased(rows: Sequence[Row]) -> list[str]:
    """Why a model is erased."""
    return [
        f"{label(row)}: residual {interval(row.residual)} is equivalent to retraining within {number(row.margin)}."
        for row in rows
    ] + [NOT_A_GUARANTEE]


def undecided_utility(row: UtilityRow, against: str, units: str, family: int) -> str:
    """Why utility is neither damaged nor kept; `family` is Holm's largest factor."""
    difference = row.difference
    if not math.isfinite(difference.mean):
        return f"{label(row)}: the values are not finite."
    need = (row.spare, abs(row.spare.mean), LEVEL if row.spare.mean > 0 else LEVEL / (family * row.tests))
    decides = _ending(_decides([need], None, units))
    if row.label is None:
        return f"{_difference(row, against)}, not wholly above {number(-row.quantity.bound)}; {decides}"
    kept = f"unlearned minus half of {against} is {interval(row.spare)}, not wholly above 0"
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
    residual = f"residual {interval(row.residual)}{_alone(row, family)}"
    return f"{label(row)}: {residual}; {smallest_gap(row)}; {_ending(decides)}"


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
    clause = f"the smallest gap this run could have excluded is {number(row.residual.half_width)}"
    if not row.seen:
        return f"{clause}, and the range {interval(row.range)} is not above 0"
    return f"{clause}, the margin is {number(row.margin)}"


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
