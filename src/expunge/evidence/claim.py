"""Claims as data: written down with their rule before anything is measured, then decided from one number per seed.

    reproduced       the rule holds, tested one-sided at 5 % over seeds (primary claims: Holm over their number)
    not reproduced   its opposite holds, tested in the same way
    inconclusive     neither, or it was not measured

A number that is an array must fulfil the rule in every component: an intersection-union test, whose p-value is the
largest of its parts and needs no correction. Its opposite needs one component only, and is corrected for their number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from expunge.base.errors import SpecError
from expunge.evidence.intervals import LEVEL, Contrast, Floats, combine, holm

Outcome = Literal["reproduced", "not reproduced", "inconclusive"]
Kind = Literal["above", "below", "within", "ordered"]
Measured = Mapping[str, Any]
"""What one seed gave by the claim's id: a number or an array; by `<id>.se` its standard error over examples, and by
`<id>.of` what the components of an array are of."""


@dataclass(frozen=True)
class Rule:
    """Where the mean over seeds must lie, and why just there."""

    kind: Kind
    low: float
    high: float
    reason: str

    def __str__(self) -> str:
        ends = {"above": f"> {self.low:g}", "below": f"< {self.high:g}", "within": f"in ({self.low:g}, {self.high:g})"}
        return ends.get(self.kind, f"each above the next by more than {self.low:g}")


def above(bound: float, reason: str) -> Rule:
    """The mean lies above a bound."""
    return Rule("above", bound, math.inf, reason)


def below(bound: float, reason: str) -> Rule:
    """The mean lies below a bound."""
    return Rule("below", -math.inf, bound, reason)


def within(low: float, high: float, reason: str) -> Rule:
    """The mean lies between two bounds: equivalence, or a slope with its tolerance."""
    return Rule("within", low, high, reason)


def ordered(reason: str, margin: float = 0.0) -> Rule:
    """Each number of an array exceeds the next one by more than a margin."""
    return Rule("ordered", margin, math.inf, reason)


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper, or one of ours beyond it, that a measurement can contradict."""

    id: str
    statement: str
    source: str
    """Paper and place; `ours` for what goes beyond it."""
    rule: Rule
    unit: str
    primary: bool = False
    """One to three of a study carry it; the others are secondary."""
    paper_value: str | None = None
    """The paper's own figure as it was read; never one that could not be read."""


@dataclass(frozen=True)
class Finding:
    """A claim with what was measured of it."""

    claim: Claim
    verdict: Outcome
    contrast: Contrast
    """Mean over seeds; for an array that of the component which decides."""
    seeds: int
    values: tuple[float, ...] = field(repr=False)
    """The deciding component, one number per seed."""
    note: str = ""
    parts: Mapping[str, float] = field(default_factory=dict, repr=False)
    """Of an array: every component's mean over seeds, by what it is of."""

    def as_json(self) -> dict[str, Any]:
        """Plain data, as `study --json` prints it."""
        claim, mean = self.claim, self.contrast
        measured = {"value": mean.mean, "low": mean.low, "high": mean.high, "n": self.seeds, "unit": claim.unit}
        return {
            "id": claim.id,
            "statement": claim.statement,
            "source": claim.source,
            "primary": claim.primary,
            "paper_value": claim.paper_value,
            "rule": {"kind": claim.rule.kind, "holds": str(claim.rule), "reason": claim.rule.reason},
            "measured": measured | {"values": list(self.values), "parts": dict(self.parts)},
            "verdict": self.verdict,
            "note": self.note,
        }


@dataclass(frozen=True)
class _Tested:
    """A claim's component that decides, with the p-values of the rule and of its opposite."""

    contrast: Contrast
    values: tuple[float, ...]
    holds: float
    fails: float
    parts: Mapping[str, float] = field(default_factory=dict)


def decide(claims: Sequence[Claim], seeds: Sequence[Measured]) -> list[Finding]:
    """Hold each claim against what the seeds gave.

    Args:
        claims: In the order in which they are shown.
        seeds: One entry per seed; a claim that no seed measured is inconclusive.

    Returns:
        One finding per claim.

    Raises:
        SpecError: A seed gave something that is no number or array, or arrays of different lengths.
    """
    tested = [_test(claim, [s for s in seeds if claim.id in s]) for claim in claims]
    primary = [t.holds for claim, t in zip(claims, tested, strict=True) if claim.primary and t is not None]
    adjusted = iter(holm(primary))
    return [
        _finding(claim, t, next(adjusted) if claim.primary and t is not None else None)
        for claim, t in zip(claims, tested, strict=True)
    ]


def _finding(claim: Claim, tested: _Tested | None, adjusted: float | None) -> Finding:
    if tested is None:
        return Finding(claim, "inconclusive", Contrast(math.nan, math.nan, 0), 0, (), "not measured at this preset")
    holds = tested.holds if adjusted is None else adjusted
    verdict: Outcome = "inconclusive"
    if holds <= LEVEL:
        verdict = "reproduced"
    elif tested.fails <= LEVEL:
        verdict = "not reproduced"
    note = _note(claim, tested, verdict)
    return Finding(claim, verdict, tested.contrast, len(tested.values), tested.values, note, tested.parts)


def _note(claim: Claim, tested: _Tested, verdict: Outcome) -> str:
    if verdict != "inconclusive":
        return ""
    if len(tested.values) < 2:
        return "one seed has no interval"
    if not math.isfinite(tested.contrast.mean):
        return "not finite"
    if tested.holds <= LEVEL:
        return f"alone p = {tested.holds:.3f}, which the number of primary claims takes back"
    rule, mean = claim.rule, tested.contrast.mean
    gap = min(abs(mean - end) for end in (rule.low, rule.high) if math.isfinite(end))
    needed = tested.contrast.seeds_needed(gap)
    return f"{needed} seeds would decide, if they scatter as these do" if needed else "more seeds would not decide"


def _test(claim: Claim, seeds: Sequence[Measured]) -> _Tested | None:
    if not seeds:
        return None
    values = _stacked(claim, [s[claim.id] for s in seeds])
    errors = _stacked(claim, [s.get(f"{claim.id}.se", np.zeros(values.shape[1])) for s in seeds])
    means = values.mean(axis=0)
    if claim.rule.kind == "ordered":
        if values.shape[1] < 2:
            raise SpecError("one number has no order", where=claim.id, allowed="an array of two or more")
        values, errors = values[:, :-1] - values[:, 1:], np.hypot(errors[:, :-1], errors[:, 1:])
    parts = [_component(claim.rule, values[:, i], errors[:, i]) for i in range(values.shape[1])]
    worst = max(parts, key=lambda part: part.holds)
    fails = min(1.0, len(parts) * min(part.fails for part in parts))
    return _Tested(worst.contrast, worst.values, worst.holds, fails, _parts(claim, means, seeds[0]))


def _parts(claim: Claim, means: Floats, first: Measured) -> dict[str, float]:
    if means.size < 2:
        return {}
    names = first.get(f"{claim.id}.of") or range(1, means.size + 1)
    return {str(name): float(mean) for name, mean in zip(names, means, strict=True)}


def _component(rule: Rule, values: Floats, errors: Floats) -> _Tested:
    seeds = len(values)
    if not np.isfinite(values).all():
        return _Tested(Contrast(math.nan, math.nan, seeds - 1), tuple(map(float, values)), 1.0, 1.0)
    mean = combine(values, math.sqrt(float(np.sum(errors**2))) / seeds, 0.0)
    # A bound at infinity is met by every number.
    holds = max(
        mean.p_above(rule.low) if math.isfinite(rule.low) else 0.0,
        mean.p_below(rule.high) if math.isfinite(rule.high) else 0.0,
    )
    fails = min(
        mean.p_below(rule.low) if math.isfinite(rule.low) else 1.0,
        mean.p_above(rule.high) if math.isfinite(rule.high) else 1.0,
    )
    return _Tested(mean, tuple(map(float, values)), holds, fails)


def _stacked(claim: Claim, found: Sequence[Any]) -> Floats:
    """One row per seed, one column per component."""
    try:
        rows = [np.atleast_1d(np.asarray(value, dtype=np.float64)) for value in found]
        return np.stack([row.ravel() for row in rows])
    except (TypeError, ValueError) as error:
        raise SpecError(f"a seed gave no number ({error})", where=claim.id, allowed="a number or an array") from None
