"""The verdict about an unlearned model: tests against retrained models, and what these tests could not see.

Flags; the first that applies becomes the headline:

    dormant         after an attack, residual and gain both exceed the margin
    incomplete      the residual exceeds the margin, before or after an attack
    damaged         utility, unlearned minus retrained, lies wholly below minus its bound, over all examples or for one
                    label
    over-forgotten  the residual lies below minus the margin: the model does worse on the examples than on unseen ones
    erased          every required audit has power and is equivalent before and after attack, and utility is kept
    inconclusive    otherwise

The first four flags are accusations, see `accusations.py`. `erased` needs all required audits (an AND) and no
correction. A model that is accused is never `erased`, even if the accusing audit is not required. `guards.py` says
which rows prove nothing because an attack or the unlearning destroyed the model. `required.py` says which audits
`erased` depends on. `table.py` takes `erased` back if the method kept the lower layers and no audit read them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

from expunge.base.errors import SpecError
from expunge.evidence import reasons
from expunge.evidence.accusations import KNOWLEDGE_FLAGS, Accusations, accusations
from expunge.evidence.comparison import Design, Row, over_held_out, over_method, over_model, rows_of
from expunge.evidence.contrast import Contrast
from expunge.evidence.guards import AttackGuard, State, guard_of, without_skill
from expunge.evidence.intervals import LEVEL
from expunge.evidence.quantity import Quantity
from expunge.evidence.required import Required, required_of
from expunge.evidence.result import AuditResult, knowledge_result, utility_result
from expunge.evidence.utility import UtilityRow, utility_rows

__all__ = ["AuditResult", "Quantity", "Verdict", "judge_method", "judge_model", "judge_without_reference"]

Claim = Literal["method", "model", "no reference"]
FLAGS = ("dormant", "incomplete", "damaged", "over-forgotten", "erased", "inconclusive")
FEWEST = 3
"""Fewest seeds or references from which a scatter can be estimated."""


@dataclass(frozen=True)
class AttackState:
    """Whether an attack can show anything."""

    attack: str
    state: State
    """`valid`; or `idle`, it changed no answer; `void`, it destroyed the references; `unclear`, it may have."""
    trains: bool


@dataclass(frozen=True)
class Verdict:
    """The verdict about one model or method, with its reasons and audits."""

    model: str
    verdict: str
    """The headline: the first of `flags`."""
    flags: list[str]
    reasons: list[str]
    audits: list[AuditResult]
    attacks: list[AttackState]
    """What each attack did to models that never knew the forget set."""
    claim: Claim

    def as_json(self) -> dict[str, Any]:
        """Plain data. A NaN stays a float; the writer decides how to spell it."""
        keys = ("model", "verdict", "flags", "reasons", "audits", "attacks")
        plain = asdict(self)
        return {key: plain[key] for key in keys}


@dataclass(frozen=True)
class _Evidence:
    model: str
    claim: Claim
    rows: list[Row]
    utility: list[UtilityRow]
    required: Required
    guards: dict[str, AttackGuard]
    """By attack."""
    no_skill: dict[str | None, Contrast]
    """Attacks after which the model has no skill, `None` for before any attack."""
    shortage: str = ""
    """The reason why no flag may be decided, or the empty string."""

    @property
    def units(self) -> str:
        return "references" if self.claim == "model" else "seeds"

    @property
    def against(self) -> str:
        return "original" if self.claim == "no reference" else "retrained"

    def silent(self, row: Row) -> bool:
        """Whether a guard forbids to accuse by a row."""
        return row.attack in self.no_skill or (row.attack is not None and self.guards[row.attack].state == "void")

    @cached_property
    def accused(self) -> Accusations:
        return accusations(self.rows, [self.silent(row) for row in self.rows], self.utility)


def judge_method(model: str, quantities: Sequence[Quantity], training: Collection[str] | None = None) -> Verdict:
    """The verdict about a method: the seeds are the sample; original and reference of a seed share initial weights.

    Args:
        model: The method's label.
        quantities: Knowledge, utility and skill, one entry per seed; at least 3 seeds, or the verdict is
            `inconclusive`.
        training: Labels of the attacks that train; by default all attacks.

    Returns:
        The verdict.
    """
    seeds = min((len(quantity.unlearned) for quantity in quantities), default=FEWEST)
    shortage = f"A claim about a method needs at least {FEWEST} seeds, found {seeds}." if seeds < FEWEST else ""
    return _judge(model, "method", quantities, over_method, shortage, training)


def judge_model(model: str, quantities: Sequence[Quantity], training: Collection[str] | None = None) -> Verdict:
    """The verdict about a single unlearned model, compared with retrained models.

    Args:
        model: The model's label.
        quantities: One original and one unlearned model each; at least 3 references, or the verdict is `inconclusive`.
        training: Labels of the attacks that train; by default all attacks.

    Returns:
        The verdict.
    """
    count = min((len(quantity.reference) for quantity in quantities), default=FEWEST)
    shortage = f"A claim about one model needs at least {FEWEST} references, found {count}." if count < FEWEST else ""
    return _judge(model, "model", quantities, over_model, shortage, training)


def judge_without_reference(
    model: str, quantities: Sequence[Quantity], training: Collection[str] | None = None
) -> Verdict:
    """The verdict without retrained models: it can only be an accusation or `inconclusive`.

    Args:
        model: The model's label.
        quantities: Knowledge with held-out values as the reference, and their ids as `reference_ids`. Utility, which is
            compared with the original; its reference is ignored.
        training: Labels of the attacks that train; by default all attacks.

    Returns:
        The verdict.

    Raises:
        SpecError: Held-out values have no ids of their own.
    """
    prepared = []
    for quantity in quantities:
        if quantity.role != "knowledge":
            attacked = {attack: (quantity.original, after) for attack, (_, after) in quantity.attacked.items()}
            quantity = replace(quantity, reference=quantity.original, reference_ids=None, attacked=attacked)
        elif quantity.reference_ids is None:
            raise SpecError(
                "held-out values have no ids", where=quantity.metric, remedy="give their ids as `reference_ids`"
            )
        prepared.append(quantity)
    return _judge(model, "no reference", prepared, over_held_out, "", training)


def _judge(
    model: str,
    claim: Claim,
    quantities: Sequence[Quantity],
    design: Design,
    shortage: str,
    training: Collection[str] | None,
) -> Verdict:
    knowledge = [quantity for quantity in quantities if quantity.role == "knowledge"]
    by_quantity = [rows_of(quantity, design) for quantity in knowledge]
    attacks = list(dict.fromkeys(attack for quantity in knowledge for attack in quantity.attacked))
    utility = [row for entry in quantities if entry.role == "utility" for row in utility_rows(entry, design)]
    lost = {attack: without_skill(attack, quantities, design) for attack in (None, *attacks)}
    evidence = _Evidence(
        model,
        claim,
        [row for rows in by_quantity for row in rows],
        # Without references, an attack may harm the model more than it could harm a retrained one.
        [row for row in utility if row.attack is None or claim != "no reference"],
        required_of([rows[0] for rows in by_quantity]),
        {a: _guard(a, quantities, training, claim) for a in attacks},
        {attack: skill for attack, skill in lost.items() if skill is not None},
        shortage,
    )
    return _verdict(evidence)


def _guard(attack: str, quantities: Sequence[Quantity], training: Collection[str] | None, claim: Claim) -> AttackGuard:
    trains = training is None or attack in training
    return guard_of(attack, quantities, trains=trains, references=claim != "no reference")


def _verdict(evidence: _Evidence) -> Verdict:
    by_flag = {} if evidence.shortage else _accused(evidence)
    if not by_flag:
        lacking = _lacking(evidence)
        passed = [row for row in evidence.rows if _decides(evidence, row)]
        by_flag = {"inconclusive": lacking} if lacking else {"erased": reasons.erased(passed)}
        by_flag = {flag: sentences + evidence.required.notes for flag, sentences in by_flag.items()}
    flags = [flag for flag in FLAGS if flag in by_flag]
    sentences = [sentence for flag in flags for sentence in by_flag[flag]] + _guarded(evidence)
    attacks = [AttackState(guard.attack, guard.state, guard.trains) for guard in evidence.guards.values()]
    return Verdict(evidence.model, flags[0], flags, sentences, _results(evidence), attacks, evidence.claim)


def _accused(evidence: _Evidence) -> dict[str, list[str]]:
    sentence_of = {
        "dormant": reasons.dormant,
        "incomplete": reasons.incomplete,
        "over-forgotten": reasons.over_forgotten,
    }
    by_flag = {
        flag: [sentence_of[flag](evidence.rows[index]) for index in evidence.accused.rows(flag)]
        for flag in KNOWLEDGE_FLAGS
    }
    damaged = [evidence.utility[index] for index in evidence.accused.rows("damaged")]
    by_flag["damaged"] = [reasons.damaged(row, evidence.against) for row in damaged]
    return {flag: sentences for flag, sentences in by_flag.items() if sentences}


def _guarded(evidence: _Evidence) -> list[str]:
    """What the guards found: void attacks, and models without skill."""
    sentences = [reasons.void(guard) for guard in evidence.guards.values() if guard.state == "void"]
    return sentences + [reasons.no_skill(attack, skill) for attack, skill in evidence.no_skill.items()]


def _decides(evidence: _Evidence, row: Row) -> bool:
    """Whether `erased` depends on a row: a required audit, before any attack or after a valid one."""
    return row.quantity in evidence.required.quantities and (
        row.attack is None or evidence.guards[row.attack].state != "void"
    )


def _contradicts(evidence: _Evidence, row: Row) -> bool:
    """Whether a row that `erased` does not depend on shows remaining knowledge by its own test.

    It may still be no accusation, because all accusations share 5 %. Without this a model whose readout alone was
    edited passes, while a probe below it reads as much as before.
    """
    return not _decides(evidence, row) and row.seen and not evidence.silent(row) and row.over.p_above(0) <= LEVEL


def _lacking(evidence: _Evidence) -> list[str]:
    """What the run lacks for `erased`; empty if it lacks nothing."""
    lacking = [evidence.shortage] if evidence.shortage else []
    if evidence.claim == "no reference":
        lacking.append(reasons.NO_RETRAINING)
    deciding = [row for row in evidence.rows if _decides(evidence, row)]
    if not deciding:
        lacking.append("No required knowledge audit, such as forget accuracy, was run.")
    lacking += _attacks_lacking(evidence) + _not_repeated(evidence)
    failing = [row for row in deciding or evidence.rows if not row.passes]
    failing += [row for row in evidence.rows if deciding and _contradicts(evidence, row)]
    lacking += [reasons.undecided(row, evidence.units, evidence.accused.family) for row in failing]
    if not evidence.utility:
        lacking.append("No utility audit was run, so damage was not looked for.")
    lacking += [
        reasons.undecided_utility(row, evidence.against, evidence.units, evidence.accused.utility_family)
        for row in evidence.utility
        if not row.kept and not _void(evidence, row.attack)
    ]
    if evidence.no_skill:
        lacking.append("The model has no skill left, so its knowledge cannot be judged.")
    return lacking + (reasons.passing([row for row in deciding if row.passes]) if lacking else [])


def _void(evidence: _Evidence, attack: str | None) -> bool:
    return attack is not None and attack in evidence.guards and evidence.guards[attack].state == "void"


def _attacks_lacking(evidence: _Evidence) -> list[str]:
    guards = list(evidence.guards.values())
    if not guards:
        return ["No attack was run, so dormant knowledge was not looked for."]
    lacking = [reasons.unclear(guard) for guard in guards if guard.state == "unclear"]
    if not any(guard.clears and guard.trains for guard in guards):
        lacking += [reasons.idle(guard) for guard in guards if guard.state == "idle"]
        lacking.append(
            "No attack that trains left the references intact, so dormant knowledge was not looked for: add `relearn`."
        )
    return lacking


def _not_repeated(evidence: _Evidence) -> list[str]:
    sentences = []
    for quantity in evidence.required.quantities:
        missing = [attack for attack in evidence.guards if attack not in quantity.attacked]
        if missing:
            name = f"{quantity.metric} on {quantity.split}"
            sentences.append(f"{name} is required but was not repeated after {', '.join(missing)}.")
    return sentences


def _results(evidence: _Evidence) -> list[AuditResult]:
    knowledge = [
        knowledge_result(row, p, proves=not evidence.silent(row))
        for row, p in zip(evidence.rows, evidence.accused.knowledge, strict=True)
    ]
    utility = [
        utility_result(row, {"damaged": p}) for row, p in zip(evidence.utility, evidence.accused.utility, strict=True)
    ]
    return knowledge + utility
