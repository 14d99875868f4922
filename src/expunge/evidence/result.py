"""One audit's numbers as plain data: the rows under a verdict."""

from __future__ import annotations

from dataclasses import dataclass, field

from expunge.evidence.comparison import Row
from expunge.evidence.intervals import Contrast
from expunge.evidence.quantity import Quantity


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


def knowledge_result(row: Row, p: dict[str, float]) -> AuditResult:
    """The result of a knowledge audit, with adjusted p-values by flag."""
    contrasts = {"residual": row.residual, "range": row.range}
    if row.gain is not None:
        contrasts["gain"] = row.gain
    return _result(row.quantity, row.attack, contrasts, row.margin, row.power, row.equivalent, p)


def utility_result(quantity: Quantity, difference: Contrast, bound: float, p: dict[str, float]) -> AuditResult:
    """The result of a utility audit; it is equivalent if the loss is smaller than allowed."""
    power, kept = difference.half_width < -bound, difference.low > bound
    return _result(quantity, None, {"residual": difference}, -bound, power, kept, p)


def _result(
    quantity: Quantity,
    attack: str | None,
    contrasts: dict[str, Contrast],
    margin: float,
    power: bool,
    equivalent: bool,
    p: dict[str, float],
) -> AuditResult:
    ends: dict[str, float] = {}
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
