"""The accusations against one model, and their p-values: at most 5 % of good models are accused of anything.

    dormant         after an attack, residual and gain both exceed the margin
    incomplete      the residual exceeds the margin, before or after an attack
    over-forgotten  the residual lies below minus the margin
    damaged         utility before any attack, unlearned minus retrained, lies below minus its bound

The 5 % are shared in halves by two questions: does the model know, or show, what it should not (the first three
flags), and is it hurt (the last)? Within each half, Holm's correction covers all audits and attacks together. Of the
three flags that a row of knowledge can carry, at most two can be false by independent chance: a residual is not above
and below the margin, and a dormant row is an incomplete one. Holm's factor is bounded by that (Shaffer 1986).

Utility after an attack accuses nobody, because the attack may harm a model more than it harms a retrained one. But
`erased` needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from expunge.evidence.comparison import Row
from expunge.evidence.intervals import LEVEL, holm
from expunge.evidence.utility import UtilityRow

KNOWLEDGE_FLAGS = ("dormant", "incomplete", "over-forgotten")


@dataclass(frozen=True)
class Accusations:
    """Adjusted p-values of every accusation."""

    knowledge: list[dict[str, float]]
    """Per row of knowledge, by flag."""
    utility: list[float]
    """Per row of utility."""
    family: int
    """Largest factor of the correction for a row of knowledge."""
    utility_family: int
    """Largest factor of the correction for a row of utility."""

    def rows(self, flag: str) -> list[int]:
        """Positions of the rows that carry a flag."""
        adjusted = self.utility if flag == "damaged" else [p[flag] for p in self.knowledge]
        return [index for index, p in enumerate(adjusted) if p <= LEVEL]


def accusations(rows: Sequence[Row], silent: Sequence[bool], utility: Sequence[UtilityRow]) -> Accusations:
    """Test every accusation.

    Args:
        rows: Rows of knowledge.
        silent: Per row, whether a guard forbids to accuse by it.
        utility: Rows of utility.

    Returns:
        The adjusted p-values. A row that is silent or without range has p = 1 and stays in the family: otherwise the
        data would decide the size of the family.
    """
    raw = [
        _p(row, flag) if row.seen and not mute else 1.0
        for row, mute in zip(rows, silent, strict=True)
        for flag in _flags(row)
    ]
    most = sum(min(len(_flags(row)), 2) for row in rows)
    before = [row.p for row in utility if row.attack is None]
    halves = bool(rows) + bool(before)
    knowledge = iter(_shared(raw, halves, most))
    harm = iter(_shared(before, halves, len(before)))
    return Accusations(
        [{flag: next(knowledge) if flag in _flags(row) else 1.0 for flag in KNOWLEDGE_FLAGS} for row in rows],
        [next(harm) if row.attack is None else 1.0 for row in utility],
        halves * most,
        halves * len(before),
    )


def _shared(p: Sequence[float], halves: int, most: int) -> list[float]:
    return [min(1.0, halves * adjusted) for adjusted in holm(p, most)]


def _flags(row: Row) -> tuple[str, ...]:
    return KNOWLEDGE_FLAGS if row.gain_over is not None else KNOWLEDGE_FLAGS[1:]


def _p(row: Row, flag: str) -> float:
    if flag == "over-forgotten":
        return row.under.p_below(0)
    over = row.over.p_above(0)
    return max(over, row.gain_over.p_above(0)) if flag == "dormant" and row.gain_over is not None else over
