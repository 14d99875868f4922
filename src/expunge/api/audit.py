"""Audit one model of yours beside retrained references, and report it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.api.models import references_of, shadows_of
from expunge.api.parts import expect, parts_of
from expunge.api.record import write_record
from expunge.base.record import write_file
from expunge.base.seeds import derive
from expunge.core.case import Case, Cost, Curve, Unlearned
from expunge.core.contracts import Attack, Audit, refuse_model, refuse_objective
from expunge.core.device import precision
from expunge.core.modules import first_parameter
from expunge.evidence.table import Measured, Table
from expunge.evidence.verdict import Verdict
from expunge.pipeline import gallery as galleries


@dataclass(frozen=True)
class Result:
    """What an audit found about one model."""

    table: Table
    curves: Mapping[tuple[str, int, str], Curve]
    """(model, reference number, attack) -> the attack's curve."""
    facts: Mapping[str, Any]
    """What was run, as plain data."""
    cost: Cost
    """Of unlearning."""
    versions: Mapping[str, Mapping[str, int]]
    """Version of each attack and audit, by name."""
    examples: Mapping[str, Any] | None = None
    """Forget examples with what every model says to them, see `pipeline.gallery`; only where they were asked for."""

    @property
    def verdict(self) -> Verdict:
        """The verdict about the unlearned model."""
        return self.table.verdicts()[0]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows that `expunge run` would write."""
        return self.table.rows()

    def save(self, folder: str | Path) -> Path:
        """Write a record that `expunge report`, `verify` and `compare` read; returns its folder."""
        root = Path(folder)
        write_record(root, self.table, self.curves, self.facts, self.cost, self.versions, self.examples)
        return root

    def __str__(self) -> str:
        from expunge.reporting.text import verdict_table

        return verdict_table(self.table, [self.verdict])


def audit(
    done: Unlearned,
    case: Case,
    *,
    attacks: Sequence[str | Mapping[str, Any]] = ("relearn",),
    audits: Sequence[str | Mapping[str, Any]] = ("loss", "distance"),
    references: int = 3,
    gallery: bool = False,
) -> Result:
    """Attack and measure the unlearned model beside retrained references.

    Args:
        done: What `unlearn` returned.
        case: The case that it was made from.
        attacks: Names, or tables as in a spec: `{"name": "relearn", "k": 5}`; the second of one name needs a `label`.
        audits: The same; accuracy, and recitation on text, are always there. `u_lira` trains as many shadow models as
            it is set to and runs the method again on half of them; they are kept with the case as references are.
        references: Models to retrain; they are kept with the case, so that a second audit costs none. At least 3 are
            needed for more than an accusation. None are trained where the case has no recipe.
        gallery: Copy some of the forget examples into the result, its record and its report, with what the models say
            to them; off, for they may be personal.

    Returns:
        Rows and verdict.

    Raises:
        ExpungeError: An unknown name or setting, two of one label, an audit that cannot measure such a model, or
            training that diverged.
    """
    expect(done, Unlearned, "done", "what expunge.unlearn returned; it comes first")
    expect(case, Case, "case", "what expunge.case returned; it comes second")
    always = list(case.problem.objective.audits)
    run_attacks, run_audits = parts_of("attack", attacks), parts_of("audit", always) | parts_of("audit", audits)
    _check(done, case, run_attacks, run_audits)
    count = references if case.recipe is not None else 0
    models = [("original", 0, case.original), (done.method, 0, done.model)]
    models += [("reference", i, model) for i, model in enumerate(references_of(case, count))]
    measured: list[Measured] = []
    curves: dict[tuple[str, int, str], Curve] = {}
    asked: list[tuple[galleries.Name, nn.Module]] = []
    for name, index, model in models:
        made = done if model is done.model else None
        measured += _measure(name, index, None, model, case, run_audits, made)
        asked += [((name, None), model)] if index == 0 else []
        for label, attack in run_attacks.items() if name != "original" else ():
            attacked = attack(model, case, derive(case.seed, "attack", label, index))
            curves[name, index, label] = attacked.curve
            asked += [((name, label), attacked.model)] if gallery and index == 0 else []
            again = {key: part for key, part in run_audits.items() if part.after_attack}
            measured += _measure(name, index, (label, attack), attacked.model, case, again, made)
    names = ["original", *(["reference"] if count else []), done.method]
    table = Table(measured, names, list(range(max(count, 1))), list(run_attacks), about_one_model=True)
    facts = _facts(done, case, run_attacks, run_audits, count)
    versions = {"attack": _versions(attacks, run_attacks), "audit": _versions([*always, *audits], run_audits)}
    shown = galleries.gallery(case.problem, asked, 0) if gallery else None
    return Result(table, curves, facts, done.cost, versions, shown)


def report(result: Result, path: str | Path) -> Path:
    """Write the report page of a result; returns its path."""
    from expunge.reporting.page import write_report

    with tempfile.TemporaryDirectory() as folder:
        page = write_report(result.save(folder)).read_text(encoding="utf-8")
    write_file(Path(path), page)
    return Path(path)


def _check(done: Unlearned, case: Case, attacks: Mapping[str, Any], audits: Mapping[str, Any]) -> None:
    """Refuse what would fail after references were trained."""
    for kind, parts in (("attack", attacks), ("audit", audits)):
        for label, part in parts.items():
            if isinstance(part, Attack | Audit):
                refuse_model(part, case.original, f"{kind} {label!r}")
            if isinstance(part, Attack):
                part.check(case.problem)
    for label, part in audits.items():
        refuse_objective(part.needs, case.problem.objective, where=f"audit {label!r}")
        if part.shadow_pairs:
            shadows_of(case, done, 0)


def _measure(
    name: str,
    index: int,
    attack: tuple[str, Attack] | None,
    model: nn.Module,
    case: Case,
    audits: Mapping[str, Any],
    made: Unlearned | None,
) -> list[Measured]:
    found: list[Measured] = []
    for label, part in audits.items():
        around = shadows_of(case, made, part.shadow_pairs, attack) if part.shadow_pairs else None
        scores = part(model, replace(case, shadows=around), derive(case.seed, "audit", label))
        found += [Measured(name, index, attack[0] if attack else None, entry) for entry in scores]
    return found


def _versions(wanted: Sequence[str | Mapping[str, Any]], parts: Mapping[str, Any]) -> dict[str, int]:
    tables = [{"name": item} if isinstance(item, str) else item for item in wanted]
    return {table["name"]: parts[table.get("label", table["name"])].version for table in tables}


def _facts(
    done: Unlearned, case: Case, attacks: Mapping[str, Any], audits: Mapping[str, Any], count: int
) -> dict[str, Any]:
    def tables(parts: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [{"name": label, **part.settings()} for label, part in parts.items()]

    problem = case.problem
    return {
        "name": done.method,
        "seeds": list(range(max(count, 1))),
        "threads": torch.get_num_threads(),
        "device": first_parameter(done.model).device.type,
        "precision": precision(),
        "data": {"name": "your data", "train": len(problem.train), "test": len(problem.test)},
        "model": {"name": type(case.original).__name__},
        "forget": {"name": "your forget set", "count": len(problem.forget)},
        "method": [{"name": done.method}],
        "attack": tables(attacks),
        "audit": tables(audits),
    }
