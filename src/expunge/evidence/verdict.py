"""The verdict about an unlearned model: tests against retrained models, and what these tests could not see.

Flags; the first that applies becomes the headline:

    dormant         after an attack, residual and gain both exceed the margin
    incomplete      the residual exceeds the margin, before or after an attack
    damaged         utility, unlearned minus retrained, lies wholly below -0.02
    over-forgotten  the residual lies below minus the margin: the model does worse on the examples than on unseen ones
    erased          every required audit has power and is equivalent before and after attack, and utility is kept
    inconclusive    otherwise

The first four flags are accusations. An accusation needs one audit or attack (an OR), so its p-values are corrected by
Holm within each flag. `erased` needs all required audits (an AND) and no correction. A model that is accused is never
`erased`, even if the accusing audit is not required.
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
"""Fewest seeds or references from which a scatter can be estimated."""


@dataclass(frozen=True)
class Verdict:
    """The verdict about one model or method, with its reasons and audits."""

    model: str
    verdict: str
    """The headline: the first of `flags`."""
    flags: list[str]
    reasons: list[str]
    audits: list[AuditResult]
    claim: Claim

    def as_json(self) -> dict[str, Any]:
        """Plain data. A NaN stays a float; the writer decides how to spell it."""
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
    """The reason why no flag may be decided, or the empty string."""

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
    """The verdict about a method: the seeds are the sample; original and reference of a seed share initial weights.

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
    """The verdict about a single unlearned model, compared with retrained models.

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
    """The verdict without retrained models: it can only be an accusation or `inconclusive`.

    Args:
        model: The model's label.
        quantities: Knowledge with held-out values as the reference, and their ids as `reference_ids`. Utility, which is
            compared with the original; its reference is ignored.

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
    by_flag = {} if shortage else _sentences(evidence, adjusted)
    if not by_flag:
        lacking = _lacking(evidence)
        by_flag = {"inconclusive": lacking} if lacking else {"erased": reasons.erased(_required(rows))}
    flags = [flag for flag in FLAGS if flag in by_flag]
    sentences = [sentence for flag in flags for sentence in by_flag[flag]]
    return Verdict(model, flags[0], flags, sentences, _results(evidence, adjusted), claim)


def _accusations(evidence: _Evidence) -> dict[str, list[float]]:
    """Adjusted p-values by flag, in the order of the rows; for `damaged` in the order of utility."""

    def family(p: Callable[[Row], float]) -> list[float]:
        # Rows without range stay in the family with p = 1. Otherwise the data would decide the size of the family.
        return holm([p(row) if row.seen else 1.0 for row in evidence.rows])

    def dormant(row: Row) -> float:
        return 1.0 if row.gain_over is None else max(row.over.p_above(0), row.gain_over.p_above(0))

    return {
        "dormant": family(dormant),
        "incomplete": family(lambda row: row.over.p_above(0)),
        "damaged": holm([difference.p_below(-quantity.bound) for quantity, difference in evidence.utility]),
        "over-forgotten": family(lambda row: row.under.p_below(0)),
    }


def _sentences(evidence: _Evidence, adjusted: dict[str, list[float]]) -> dict[str, list[str]]:
    reason = {"dormant": reasons.dormant, "incomplete": reasons.incomplete, "over-forgotten": reasons.over_forgotten}
    by_flag = {
        flag: [sentence(row) for row, p in zip(evidence.rows, adjusted[flag], strict=True) if p <= LEVEL]
        for flag, sentence in reason.items()
    }
    by_flag["damaged"] = [
        reasons.damaged(_name(quantity), difference, -quantity.bound, evidence.against)
        for (quantity, difference), p in zip(evidence.utility, adjusted["damaged"], strict=True)
        if p <= LEVEL
    ]
    return {flag: sentences for flag, sentences in by_flag.items() if sentences}


def _lacking(evidence: _Evidence) -> list[str]:
    """What the run lacks for `erased`; empty if it lacks nothing."""
    required, lacking = _required(evidence.rows), [evidence.shortage] if evidence.shortage else []
    if evidence.claim == "no reference":
        lacking.append(reasons.NO_RETRAINING)
    if not required:
        lacking.append("No required knowledge audit, such as forget accuracy, was run.")
    if not evidence.attacks:
        lacking.append("No attack was run, so dormant knowledge was not looked for.")
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
            facts = (-quantity.bound, evidence.against, evidence.units, len(evidence.utility))
            lacking.append(reasons.undecided_utility(_name(quantity), difference, *facts))
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
