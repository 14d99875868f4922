"""Which audits `erased` depends on.

A required audit needs something to forget. If the range of a required audit is shown to lie below `NO_RANGE`, then
original and retrained models hardly differ by it, and it can neither pass nor fail. The next audit of knowledge that
has a range takes its place, and the verdict names both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from expunge.evidence.comparison import Row
from expunge.evidence.quantity import Quantity
from expunge.evidence.reasons import interval, name_of, points

NO_RANGE = 0.05
"""A range of a share below this is too small to judge."""


@dataclass(frozen=True)
class Required:
    """The audits that decide `erased`, and a note for each that was replaced."""

    quantities: list[Quantity]
    notes: list[str]


def required_of(rows: Sequence[Row]) -> Required:
    """The audits that `erased` depends on.

    Args:
        rows: One row of each knowledge quantity, in the order of the audits.

    Returns:
        Every required audit, or its replacement. Without any replacement the audit stays, and the verdict is
        `inconclusive`.
    """
    chosen: list[Quantity] = []
    notes = []
    required = [row for row in rows if row.quantity.required]
    spare = [row for row in rows if not row.quantity.required and row.seen]
    graded = [row for row in required if row.seen]
    for row in required:
        if not _without_range(row) or not (graded or spare):
            chosen.append(row.quantity)
            continue
        # Another required audit that has a range is in the list anyway.
        replacement = None if graded else spare[0]
        notes.append(_note(row, replacement or graded[0]))
        chosen += [] if replacement is None or replacement.quantity in chosen else [replacement.quantity]
    return Required(chosen, notes)


def _without_range(row: Row) -> bool:
    return row.quantity.unit == "share" and row.range.high < NO_RANGE


def _note(row: Row, replacement: Row) -> str:
    unit = row.quantity.unit
    return (
        f"{name_of(row.quantity)} has no range: original minus retrained is {interval(row.range, unit)}, below "
        f"{points(NO_RANGE, unit)}. {name_of(replacement.quantity)} decides in its place."
    )
