"""Utility of an unlearned model against retrained models: before and after each attack, over all and by label.

A model that lost one label of many loses little of its mean. So utility by label is tested for each label, and the
label that lost most represents them. Its p-value is multiplied by the number of labels. The test set has too few
examples of one label to exclude a loss as small as the bound. For `erased`, each label must be shown to keep at least
half of its utility.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from expunge.evidence.comparison import AFTER, BEFORE, Design
from expunge.evidence.contrast import Contrast
from expunge.evidence.intervals import LEVEL
from expunge.evidence.quantity import Quantity

HALF = 0.5
"""The share of its utility that every label must keep."""


@dataclass(frozen=True)
class UtilityRow:
    """One utility, before any attack or after one of them."""

    quantity: Quantity
    attack: str | None
    difference: Contrast
    """Unlearned minus retrained, both after the attack; of the label that lost most."""
    p: float
    """P-value of the accusation that the loss exceeds the bound, corrected over labels."""
    spare: Contrast
    """What `erased` needs above 0: the difference plus the bound; by label, unlearned minus half of retrained."""
    label: int | None = None
    """The label that lost most, if utility is judged by label."""
    tests: int = 1
    """Number of labels."""

    @property
    def kept(self) -> bool:
        """Whether enough utility is shown to be kept."""
        return self.spare.low > 0


def utility_rows(quantity: Quantity, design: Design) -> list[UtilityRow]:
    """The rows of a utility: before any attack first, then each attack in the order given.

    Returns:
        Nothing, if the utility is judged by label and no label has enough examples.
    """
    rows = [_row(quantity, design, attack) for attack in (None, *quantity.attacked)]
    return [row for row in rows if row is not None]


def _row(quantity: Quantity, design: Design, attack: str | None) -> UtilityRow | None:
    weights = BEFORE if attack is None else AFTER
    if quantity.labels is None:
        difference = design(quantity, attack, weights, 0.0)
        spare = replace(difference, mean=difference.mean + quantity.bound)
        return UtilityRow(quantity, attack, difference, difference.p_below(-quantity.bound), spare)
    half = {name: weight if weight > 0 else HALF * weight for name, weight in weights.items()}
    parts = {
        label: (design(part, attack, weights, 0.0), design(part, attack, half, 0.0))
        for label, part in quantity.by_label().items()
    }
    if not parts:
        return None
    p_of = {label: difference.p_below(-quantity.bound) for label, (difference, _) in parts.items()}
    worst = min(parts, key=lambda label: (p_of[label], label))
    p = min(1.0, len(parts) * p_of[worst])
    if p > LEVEL:
        worst = min(parts, key=lambda label: (parts[label][1].low, label))
    return UtilityRow(quantity, attack, parts[worst][0], p, parts[worst][1], worst, len(parts))


def overall(quantities: Sequence[Quantity]) -> list[Quantity]:
    """The utilities that are judged over all labels together."""
    return [quantity for quantity in quantities if quantity.role == "utility" and quantity.labels is None]
