"""Claims as data: written down with their rule before anything is measured, then decided from one number per seed.

    reproduced       the rule holds, tested one-sided at 5 % over seeds (primary claims: Holm over their number)
    not reproduced   its opposite holds, tested in the same way
    inconclusive     neither, or it was not measured

An array must fulfil the rule in every component. This is an intersection-union test: its p-value is the largest of the
components' p-values and needs no correction. The opposite of the rule needs one component only, so its p-value is
multiplied by the number of components. The opposite of an interval has two sides and is corrected for both.

The error of a mean has two sources, seeds and examples, as in `contrast.py`. Numbers that agree exactly
in every seed, as rank correlations may, have an error of 0. They are judged by a sign test: n of them on one side of
the bound have p = 2^-n.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from expunge.base.errors import SpecError
from expunge.evidence.contrast import Contrast, combine
from expunge.evidence.intervals import LEVEL, Floats, holm

Outcome = Literal["reproduced", "not reproduced", "inconclusive"]
Kind = Literal["above", "below", "within", "ordered"]
Measured = Mapping[str, Any]
"""Measurements of one seed. `<claim id>`: a number or an array. `<id>.sampling`: standard error over examples of the
mean over all seeds. `<id>.lasting`: the part of it that more seeds would not reduce; by default all of it.
`<id>.examples`: number of distinct examples. `<id>.of`: names of the components."""


@dataclass(frozen=True)
class Rule:
    """The values that the mean over seeds must have for the claim to hold, and the reason for the bounds."""

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
    """One sentence, of a paper or our own, that a measurement can contradict."""

    id: str
    statement: str
    source: str
    """Paper and place in it; `ours` for claims that no paper makes."""
    rule: Rule
    unit: str
    primary: bool = False
    """Whether the study depends on it: one to three claims of a study are primary, the others secondary."""
    paper_value: str | None = None
    """The number that the paper gives, none if it could not be read from the paper."""
    exact: bool = False
    """Whether the number is a count that does not depend on the seed, so that no sign test is needed."""


@dataclass(frozen=True)
class Finding:
    """A claim with its measurement and verdict."""

    claim: Claim
    verdict: Outcome
    contrast: Contrast
    """Mean over seeds; for an array the mean of the deciding component."""
    seeds: int
    values: tuple[float, ...] = field(repr=False)
    """Values of the deciding component, one per seed."""
    note: str = ""
    parts: Mapping[str, float] = field(default_factory=dict, repr=False)
    """Arrays only: mean over seeds of every component, by its name."""
    needed: int | None = None
    """Seeds that would decide an inconclusive claim, if they scatter as these do; none if that is not known."""

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
            "needed": self.needed,
        }


@dataclass(frozen=True)
class _Component:
    """One number per seed with the p-values of the rule and of its opposite."""

    contrast: Contrast
    values: tuple[float, ...]
    holds: float
    fails: float
    slack: float
    """Distance of the mean to the nearest bound, negative outside the bounds; it decides between equal p-values."""


@dataclass(frozen=True)
class _Tested:
    """A claim's p-values, with the component that supports it least and the component that contradicts it most."""

    deciding: _Component
    contrary: _Component
    holds: float
    fails: float
    parts: Mapping[str, float]


def decide(claims: Sequence[Claim], seeds: Sequence[Measured]) -> list[Finding]:
    """Test each claim on the measurements of the seeds.

    Args:
        claims: In the order in which they are shown.
        seeds: One entry per seed; a claim that no seed measured is inconclusive.

    Returns:
        One finding per claim.

    Raises:
        SpecError: A measurement is neither a number nor an array, or arrays differ in length.
    """
    tested = [_test(claim, [s for s in seeds if claim.id in s]) for claim in claims]
    primary = [index for index, claim in enumerate(claims) if claim.primary]
    # Primary claims that were not measured count too, so that leaving one out does not make the others easier.
    adjusted = {
        side: dict(zip(primary, holm([getattr(tested[i], side, 1.0) for i in primary]), strict=True))
        for side in ("holds", "fails")
    }
    return [
        _finding(
            claim,
            t,
            adjusted["holds"].get(i, getattr(t, "holds", 1.0)),
            adjusted["fails"].get(i, getattr(t, "fails", 1.0)),
            LEVEL / len(primary) if claim.primary else LEVEL,
        )
        for i, (claim, t) in enumerate(zip(claims, tested, strict=True))
    ]


def _finding(claim: Claim, tested: _Tested | None, holds: float, fails: float, level: float) -> Finding:
    if tested is None:
        return Finding(claim, "inconclusive", Contrast(math.nan, math.nan, 0), 0, (), "not measured at this preset")
    verdict: Outcome = "inconclusive"
    if holds <= LEVEL:
        verdict = "reproduced"
    elif fails <= LEVEL:
        verdict = "not reproduced"
    shown = tested.contrary if verdict == "not reproduced" else tested.deciding
    note, needed = _note(claim, tested, verdict, level)
    return Finding(claim, verdict, shown.contrast, len(shown.values), shown.values, note, tested.parts, needed)


def _note(claim: Claim, tested: _Tested, verdict: Outcome, level: float) -> tuple[str, int | None]:
    """Why a claim is inconclusive, and how many seeds would decide it."""
    shown = tested.deciding
    if verdict != "inconclusive":
        return "", None
    if len(shown.values) < 2:
        return "one seed decides nothing: its number has no interval", None
    if not math.isfinite(shown.contrast.mean):
        return "not finite", None
    if tested.holds <= LEVEL:
        return f"p = {tested.holds:.3f} alone, but more than 0.05 after the correction for several primary claims", None
    rule, mean = claim.rule, shown.contrast.mean
    gap = min(abs(mean - end) for end in (rule.low, rule.high) if math.isfinite(end))
    needed = shown.contrast.seeds_needed(gap, level)
    if not needed:
        return "more seeds would not decide", None
    return f"{needed} seeds would decide, if they scatter as these do", needed


def _test(claim: Claim, seeds: Sequence[Measured]) -> _Tested | None:
    if not seeds:
        return None
    values = _stacked(claim, [s[claim.id] for s in seeds])
    none = np.zeros(values.shape[1])
    sampling = _stacked(claim, [s.get(f"{claim.id}.sampling", none) for s in seeds]).mean(axis=0)
    lasting = _stacked(claim, [s.get(f"{claim.id}.lasting", sampling) for s in seeds]).mean(axis=0)
    means = values.mean(axis=0)
    if claim.rule.kind == "ordered":
        if values.shape[1] < 2:
            raise SpecError("one number has no order", where=claim.id, allowed="an array of two or more")
        values = values[:, :-1] - values[:, 1:]
        sampling, lasting = (np.hypot(errors[:-1], errors[1:]) for errors in (sampling, lasting))
    examples = float(seeds[0].get(f"{claim.id}.examples", math.inf))
    contrasts = [combine(values[:, i], sampling[i], lasting[i], examples) for i in range(values.shape[1])]
    parts = [_component(claim, values[:, i], contrast) for i, contrast in enumerate(contrasts)]
    deciding = max(parts, key=lambda p: (p.holds, -p.slack))
    contrary = min(parts, key=lambda p: (p.fails, p.slack))
    fails = min(1.0, len(parts) * contrary.fails)
    return _Tested(deciding, contrary, deciding.holds, fails, _parts(claim, means, seeds[0]))


def _parts(claim: Claim, means: Floats, first: Measured) -> dict[str, float]:
    if means.size < 2:
        return {}
    names = first.get(f"{claim.id}.of") or range(1, means.size + 1)
    return {str(name): float(mean) for name, mean in zip(names, means, strict=True)}


def _component(claim: Claim, values: Floats, mean: Contrast) -> _Component:
    rule, seeds = claim.rule, len(values)
    numbers = tuple(map(float, values))
    if not np.isfinite(values).all():
        return _Component(Contrast(math.nan, math.nan, seeds - 1), numbers, 1.0, 1.0, -math.inf)
    least = 0.5**seeds if mean.se == 0 and not claim.exact else 0.0
    # Every number meets a bound at infinity, and none lies beyond it, so such a bound needs no test.
    above = [mean.p_above(rule.low)] if math.isfinite(rule.low) else []
    below = [mean.p_below(rule.high)] if math.isfinite(rule.high) else []
    beyond = [mean.p_below(rule.low)] if math.isfinite(rule.low) else []
    beyond += [mean.p_above(rule.high)] if math.isfinite(rule.high) else []
    fails = min(1.0, len(beyond) * max(min(beyond), least))
    slack = min(mean.mean - rule.low, rule.high - mean.mean)
    return _Component(mean, numbers, max([*above, *below, least]), fails, slack)


def _stacked(claim: Claim, values: Sequence[Any]) -> Floats:
    """`[seeds, components]` from one number or array per seed."""
    try:
        rows = [np.atleast_1d(np.asarray(value, dtype=np.float64)) for value in values]
        return np.stack([row.ravel() for row in rows])
    except (TypeError, ValueError) as error:
        raise SpecError(f"a seed gave no number ({error})", where=claim.id, allowed="a number or an array") from None
