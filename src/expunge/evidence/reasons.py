"""The sentences under a verdict: what the run found, or what it could not see and what would decide it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from expunge.evidence.comparison import Row
from expunge.evidence.intervals import LEVEL, MOST_SEEDS, Contrast, t_quantile

Need = tuple[Contrast, float, float]
"""A contrast, the half-width that it must fall below, and the one-sided level of that half-width."""

MOST_EXAMPLES = 100_000
"""A forecast of more examples than this only shows that the value lies at the bound."""
NO_RETRAINING = (
    "Held-out examples replace retrained models, so no model can be called erased. A forget set that was not drawn at "
    "random may differ from held-out examples even without training."
)
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


def label(row: Row) -> str:
    """Names the audit, its split and its attack."""
    when = "before any attack" if row.attack is None else f"after {row.attack}"
    return f"{row.quantity.metric} on {row.quantity.split} {when}"


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


def damaged(name: str, difference: Contrast, bound: float, against: str) -> str:
    """Why a model is damaged."""
    return f"{name}: unlearned minus {against} is {interval(difference)}, wholly below {number(bound)}."


def erased(rows: Sequence[Row]) -> list[str]:
    """Why a model is erased."""
    return [
        f"{label(row)}: residual {interval(row.residual)} is equivalent to retraining within {number(row.margin)}."
        for row in rows
    ] + [NOT_A_GUARANTEE]


def undecided_utility(name: str, difference: Contrast, bound: float, against: str, units: str, family: int) -> str:
    """Why utility is neither damaged nor kept; `family` counts the utility audits that Holm corrects for."""
    if not math.isfinite(difference.mean):
        return f"{name}: the values are not finite."
    away = difference.mean - bound
    need = (difference, away, LEVEL) if away > 0 else (difference, -away, LEVEL / family)
    return (
        f"{name}: unlearned minus {against} is {interval(difference)}, not wholly on one side of {number(bound)}; "
        f"{_decides([need], None, units)}."
    )


def undecided(row: Row, units: str, family: int) -> str:
    """Why a row decides nothing: the smallest gap it could have excluded, and how many seeds or examples would decide.

    Args:
        row: A row that is neither equivalent nor accused.
        units: What more of would be run, `seeds` or `references`.
        family: Number of rows that Holm's correction of an accusation counts.

    Returns:
        One sentence.
    """
    if not math.isfinite(row.residual.mean):
        return f"{label(row)}: the values are not finite."
    if row.range.mean <= 0:
        return f"{label(row)}: there was nothing to forget; {smallest_gap(row)}."
    decides = _decides(needs(row, family), row, units)
    return f"{label(row)}: residual {interval(row.residual)}{_alone(row, family)}; {smallest_gap(row)}; {decides}."


def _alone(row: Row, family: int) -> str:
    """Why a row is not accused although its own interval lies outside the margin; empty if it does not."""
    above, below = row.over.p_above(0) <= LEVEL, row.under.p_below(0) <= LEVEL
    if not (row.seen and (above or below)):
        return ""
    side = "above the margin" if above else "below minus the margin"
    return f" lies {side}, but not clearly enough for one of {family} tests (Holm's correction over audits and attacks)"


def smallest_gap(row: Row) -> str:
    """The smallest gap that the row could have excluded if there had been none."""
    if not math.isfinite(row.residual.half_width):
        return "this run could have excluded no gap"
    clause = f"the smallest gap this run could have excluded is {number(row.residual.half_width)}"
    if not row.seen:
        return f"{clause}, and the range {interval(row.range)} is not above 0"
    return f"{clause}, the margin is {number(row.margin)}"


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
        return f"the number of test examples, not of {units}, is the limit"
    limit = f"the number of forget examples, {row.quantity.examples}, not of {units}, is the limit"
    if any(distance <= 0 for _, distance, _ in wanted):
        return limit
    # Errors over examples decrease with the square root of their number.
    ratios = [t_quantile(contrast.df, level) * contrast.sampling / distance for contrast, distance, level in wanted]
    needed = row.quantity.examples * max(ratios) ** 2
    if needed > MOST_EXAMPLES:
        return f"{limit}, and the value lies so close to the bound that even {MOST_EXAMPLES:,} would not decide"
    return f"{limit}: about {_rounded_up(needed)} would decide"


def _rounded_up(x: float) -> int:
    # Two digits, since the forecast is no more precise.
    if x < 10:
        return math.ceil(x)
    unit = int(10 ** (math.floor(math.log10(x)) - 1))
    return math.ceil(x / unit) * unit
