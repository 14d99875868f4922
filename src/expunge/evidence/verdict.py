"""The verdict about an unlearned model: tests against retrained ones, and what they could not see.

Flags, in the order in which the first becomes the headline:

    dormant         after an attack, residual and gain both exceed the margin
    incomplete      the residual exceeds the margin, before or after an attack
    damaged         utility, unlearned minus retrained, lies wholly below -0.02
    over-forgotten  the residual lies below minus the margin: the examples are marked by being worse than unseen ones
    erased          every required audit has power and is equivalent before and after attack, and utility is kept
    inconclusive    otherwise

Accusations are an OR over audits and attacks, corrected by Holm within each flag; `erased` is an AND and needs no
correction. It is withheld where an accusation stands, even one by an audit that is not required.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from expunge.base.errors import SpecError
from expunge.evidence import reasons
from expunge.evidence.comparison import BEFORE, Design, Row, over_held_out, over_method, over_model, rows_of
from expunge.evidence.intervals import LEVEL, Contrast, holm
from expunge.evidence.quantity import Quantity
from expunge.evidence.result import AuditResult, knowledge_result, utility_result

__all__ = ["AuditResult", "Quantity", "Verdict", "judge_method", "judge_model", "judge_without_reference"]

Claim = Literal["method", "model", "no reference"]
FLAGS = ("dormant", "incomplete", "damaged", "over-forgotten", "erased", "inconclusive")
FEWEST = 3
"""Seeds or references below which a scatter is a guess."""


@dataclass(frozen=True)
class Verdict:
    """What can be said of one model or method."""

    model: str
    verdict: str
    """The headline: the first of `flags`."""
    flags: list[str]
    reasons: list[str]
    audits: list[AuditResult]
    claim: Claim

    def as_json(self) -> dict[str, Any]:
        """Plain data; a NaN stays a float, the writer decides how to spell it."""
        keys = ("model", "verdict", "flags", "reasons", "audits")
        plain = asdict(self)
        return {key: plain[key] for key in keys}


@dataclass(frozen=True)
class _Evidence:
    model: str
    claim: Claim
    rows: list[Row]
    utility: list[tuple[Quantity, Contrast]]
    shortage: str = ""
    """Why nothing may be decided at all, or the empty string."""

    @property
    def units(self) -> str:
        return "references" if self.claim == "model" else "seeds"

    @property
    def against(self) -> str:
        return "original" if self.claim == "no reference" else "retrained"

    @property
    def attacks(self) -> list[str]:
        return list(dict.fromkeys(row.attack for row in self.rows if row.attack is not None))


def judge_method(model: str, quantities: Sequence[Quantity]) -> Verdict:
    """The verdict about a method: seeds are the units, and original and reference of a seed share initial weights.

    Args:
        model: The method's label.
        quantities: Knowledge and utility, one entry per seed; at least 3 seeds, or the verdict is `inconclusive`.

    Returns:
        The verdict.
    """
    seeds = min((len(quantity.unlearned) for quantity in quantities), default=FEWEST)
    shortage = f"A claim about a method needs at least {FEWEST} seeds, found {seeds}." if seeds < FEWEST else ""
    return _judge(model, "method", quantities, over_method, shortage)


def judge_model(model: str, quantities: Sequence[Quantity]) -> Verdict:
    """The verdict about one model that somebody has, held against retrained ones.

    Args:
        model: The model's label.
        quantities: One original and one unlearned model each; at least 3 references, or the verdict is `inconclusive`.

    Returns:
        The verdict.
    """
    count = min((len(quantity.reference) for quantity in quantities), default=FEWEST)
    shortage = f"A claim about one model needs at least {FEWEST} references, found {count}." if count < FEWEST else ""
    return _judge(model, "model", quantities, over_model, shortage)


def judge_without_reference(model: str, quantities: Sequence[Quantity]) -> Verdict:
    """The verdict where nothing was retrained: it can only be an accusation, or `inconclusive`.

    Args:
        model: The model's label.
        quantities: Knowledge with held-out values as reference, under `reference_ids`, and utility, whose reference is
            not looked at: it is compared with the original.

    Returns:
        The verdict.

    Raises:
        SpecError: Held-out values have no ids of their own.
    """
    prepared = []
    for quantity in quantities:
        if quantity.role == "utility":
            quantity = replace(quantity, reference=quantity.original, reference_ids=None, attacked={})
        elif quantity.reference_ids is None:
            raise SpecError(
                "held-out values have no ids", where=quantity.metric, remedy="give their ids as `reference_ids`"
            )
        prepared.append(quantity)
    return _judge(model, "no reference", prepared, over_held_out, "")


def _judge(model: str, claim: Claim, quantities: Sequence[Quantity], design: Design, shortage: str) -> Verdict:
    rows = [row for quantity in quantities if quantity.role == "knowledge" for row in rows_of(quantity, design)]
    utility = [(entry, design(entry, None, BEFORE, 0.0)) for entry in quantities if entry.role == "utility"]
    evidence = _Evidence(model, claim, rows, utility, shortage)
    adjusted = _accusations(evidence)
    found = {} if shortage else _sentences(evidence, adjusted)
    if not found:
        lacking = _lacking(evidence)
        found = {"inconclusive": lacking} if lacking else {"erased": reasons.erased(_required(rows))}
    flags = [flag for flag in FLAGS if flag in found]
    told = [sentence for flag in flags for sentence in found[flag]]
    return Verdict(model, flags[0], flags, told, _results(evidence, adjusted), claim)


def _accusations(evidence: _Evidence) -> dict[str, list[float]]:
    """Adjusted p-values by flag, in the order of rows, or of utility for `damaged`."""

    def family(p: Callable[[Row], float]) -> list[float]:
        # Rows without range stay in the family with p = 1: leaving them out would let the data choose its size.
        return holm([p(row) if row.seen else 1.0 for row in evidence.rows])

    def woken(row: Row) -> float:
        return 1.0 if row.gain_over is None else max(row.over.p_above(0), row.gain_over.p_above(0))

    return {
        "dormant": family(woken),
        "incomplete": family(lambda row: row.over.p_above(0)),
        "damaged": holm([difference.p_below(-quantity.bound) for quantity, difference in evidence.utility]),
        "over-forgotten": family(lambda row: row.under.p_below(0)),
    }


def _sentences(evidence: _Evidence, adjusted: dict[str, list[float]]) -> dict[str, list[str]]:
    tell = {"dormant": reasons.dormant, "incomplete": reasons.incomplete, "over-forgotten": reasons.over_forgotten}
    found = {
        flag: [say(row) for row, p in zip(evidence.rows, adjusted[flag], strict=True) if p <= LEVEL]
        for flag, say in tell.items()
    }
    found["damaged"] = [
        reasons.damaged(_name(quantity), difference, -quantity.bound, evidence.against)
        for (quantity, difference), p in zip(evidence.utility, adjusted["damaged"], strict=True)
        if p <= LEVEL
    ]
    return {flag: sentences for flag, sentences in found.items() if sentences}


def _lacking(evidence: _Evidence) -> list[str]:
    """What stands between the run and `erased`; empty where nothing does."""
    required, lacking = _required(evidence.rows), [evidence.shortage] if evidence.shortage else []
    if evidence.claim == "no reference":
        lacking.append(reasons.NO_RETRAINING)
    if not required:
        lacking.append("No required knowledge audit, such as forget accuracy, was run.")
    if not evidence.attacks:
        lacking.append("No attack was run, so knowledge that is only asleep was not looked for.")
    lacking += _not_repeated(evidence)
    lacking += [
        reasons.undecided(row, evidence.units, len(evidence.rows))
        for row in required or evidence.rows
        if not row.passes
    ]
    if not evidence.utility:
        lacking.append("No utility audit was run, so damage was not looked for.")
    for quantity, difference in evidence.utility:
        if not difference.low > -quantity.bound:
            told = (-quantity.bound, evidence.against, evidence.units, len(evidence.utility))
            lacking.append(reasons.undecided_utility(_name(quantity), difference, *told))
    if lacking:
        lacking += [
            f"{reasons.label(row)}: {reasons.smallest_gap(row)}." for row in required or evidence.rows if row.passes
        ]
    return lacking


def _not_repeated(evidence: _Evidence) -> list[str]:
    sentences = []
    for quantity in {id(row.quantity): row.quantity for row in _required(evidence.rows)}.values():
        missing = [attack for attack in evidence.attacks if attack not in quantity.attacked]
        if missing:
            sentences.append(f"{_name(quantity)} is required but was not repeated after {', '.join(missing)}.")
    return sentences


def _required(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.quantity.required]


def _name(quantity: Quantity) -> str:
    return f"{quantity.metric} on {quantity.split}"


def _results(evidence: _Evidence, adjusted: dict[str, list[float]]) -> list[AuditResult]:
    results = []
    for index, row in enumerate(evidence.rows):
        p = {flag: adjusted[flag][index] for flag in ("dormant", "incomplete", "over-forgotten")}
        results.append(knowledge_result(row, p))
    for index, (quantity, difference) in enumerate(evidence.utility):
        p = {"damaged": adjusted["damaged"][index]}
        results.append(utility_result(quantity, difference, -quantity.bound, p))
    return results
