"""One audit's numbers as plain data: the rows under a verdict."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from expunge.evidence.comparison import Row
from expunge.evidence.contrast import Contrast
from expunge.evidence.quantity import Quantity
from expunge.evidence.utility import UtilityRow


@dataclass(frozen=True)
class AuditResult:
    """One audit, before any attack or after one. For utility the margin is the allowed loss."""

    metric: str
    split: str
    role: str
    required: bool
    attack: str | None
    residual: float
    """Unlearned minus reference, oriented so that a higher value means knows more."""
    low: float
    """Lower end of the residual's 90 % interval."""
    high: float
    margin: float
    power: bool
    equivalent: bool
    range: float | None = None
    """Original minus reference before any attack; none for utility."""
    range_low: float | None = None
    range_high: float | None = None
    gain: float | None = None
    """Only after an attack."""
    gain_low: float | None = None
    gain_high: float | None = None
    p: dict[str, float] = field(default_factory=dict)
    """Flag -> p-value of that accusation, adjusted by Holm; 1 if there was nothing to forget."""
    proves: bool = True
    """Whether the row counts: not after an attack that destroyed the references, or for a model without skill."""
    label: int | None = None
    """Utility by label: the label that lost most."""


def knowledge_result(row: Row, p: dict[str, float], *, proves: bool) -> AuditResult:
    """The result of a knowledge audit, with adjusted p-values by flag."""
    contrasts = {"residual": row.residual, "range": row.range}
    if row.gain is not None:
        contrasts["gain"] = row.gain
    result = _result(row.quantity, row.attack, contrasts, row.margin, row.power, row.equivalent, p)
    return replace(result, proves=proves)


def utility_result(row: UtilityRow, p: dict[str, float]) -> AuditResult:
    """The result of a utility audit; it is equivalent if the loss is smaller than allowed."""
    allowed = row.spare.mean - row.difference.mean
    power = row.spare.half_width < allowed
    contrasts = {"residual": row.difference}
    result = _result(row.quantity, row.attack, contrasts, allowed, power, row.kept, p)
    return replace(result, label=row.label)


def _result(
    quantity: Quantity,
    attack: str | None,
    contrasts: dict[str, Contrast],
    margin: float,
    power: bool,
    equivalent: bool,
    p: dict[str, float],
) -> AuditResult:
    ends: dict[str, Any] = {}
    for name, contrast in contrasts.items():
        prefix = "" if name == "residual" else f"{name}_"
        ends |= {name: contrast.mean, f"{prefix}low": contrast.low, f"{prefix}high": contrast.high}
    return AuditResult(
        metric=quantity.metric,
        split=quantity.split,
        role=quantity.role,
        required=quantity.required,
        attack=attack,
        margin=margin,
        power=power,
        equivalent=equivalent,
        p=p,
        **ends,
    )
