"""Audit one model of yours, compare it with retrained references, and report the result."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from safetensors.numpy import load as load_arrays

from expunge.api.addresses import addresses_of
from expunge.api.home import home_of
from expunge.api.parts import entries_of, expect, parts_of
from expunge.api.plan import CasePlan, chain, spec_of
from expunge.base.errors import MissingError
from expunge.base.memory import MemoryStore
from expunge.base.record import write_file
from expunge.base.spec import CACHE
from expunge.base.store import Store
from expunge.core import checkpoint
from expunge.core.case import Case, Cost, Curve, Unlearned
from expunge.core.contracts import Attack, Audit
from expunge.core.modules import kept_below, weights_differ
from expunge.core.refusals import refuse_model, refuse_objective
from expunge.evidence.scores import loads
from expunge.evidence.table import Measured, Table
from expunge.evidence.verdict import Verdict
from expunge.pipeline.executor import executor_of
from expunge.pipeline.folder import RunFolder
from expunge.pipeline.schedule import run_stages
from expunge.pipeline.stage import CURVE, SCORES, WEIGHTS, Stage
from expunge.pipeline.stage_kind import kind_of
from expunge.reporting.progress import Progress

_stores: WeakKeyDictionary[Case, MemoryStore] = WeakKeyDictionary()
"""Outputs of stages, by case: references and shadow models are trained once per case."""


@dataclass(frozen=True, eq=False)
class Result:
    """Scores and verdict of an audit of one model."""

    plan: CasePlan = field(repr=False)
    """The plan that ran."""
    store: Store | MemoryStore = field(repr=False)
    """The outputs of its stages."""

    @cached_property
    def table(self) -> Table:
        """All scores."""
        plan = self.plan
        measured = [
            Measured(stage.model, stage.seed or 0, stage.attack, scores)
            for stage in plan.stages
            if kind_of(stage.kind).files.get(SCORES)
            for scores in loads(self.store.read(stage.key, SCORES))
        ]
        unchanged = [
            (stage.model, stage.seed or 0)
            for stage in plan.stages
            if stage.kind == "unlearn" and self.store.facts(stage.key).get("changed") is False
        ]
        return Table(
            measured,
            plan.rows,
            plan.spec.seeds,
            list(plan.attacks),
            about_one_model=True,
            training=[label for label, attack in plan.attacks.items() if getattr(attack, "trains", False)],
            unchanged=unchanged,
            kept={s.model: kept for s in plan.stages if (kept := self.store.facts(s.key).get("kept"))},
        )

    @property
    def curves(self) -> Mapping[tuple[str, int, str], Curve]:
        """(model, reference number, attack) -> the attack's curve."""
        attacks = [stage for stage in self.plan.stages if stage.kind == "attack"]
        return {(stage.model, stage.seed or 0, stage.attack or ""): self._curve(stage) for stage in attacks}

    def _curve(self, stage: Stage) -> Curve:
        arrays, [scores] = load_arrays(self.store.read(stage.key, CURVE)), loads(self.store.read(stage.key, SCORES))
        return Curve(arrays["steps"], arrays["values"], np.asarray(scores.ids))

    @property
    def cost(self) -> Cost:
        """The cost of unlearning."""
        return self.plan.done.cost

    @property
    def verdict(self) -> Verdict:
        """The verdict about the unlearned model."""
        return self.table.verdicts()[0]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The same rows that `expunge run` writes."""
        return self.table.rows()

    def save(self, folder: str | Path) -> Path:
        """Write a record without weights and return its folder; `expunge report`, `verify` and `compare` read it."""
        record = RunFolder(Path(folder))
        record.write(self.plan, self.store)
        return record.root

    def __repr__(self) -> str:
        plan = self.plan
        parts = f"attacks {', '.join(plan.attacks) or 'none'}, audits {', '.join(plan.audits)}"
        return f"Result({plan.done.method}, {plan.references} references, {parts})"

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
    folder: str | Path | None = None,
    workers: int = 1,
) -> Result:
    """Attack and measure the unlearned model, and compare it with retrained references.

    Args:
        done: What `unlearn` returned.
        case: The case that `done` was made from.
        attacks: Names, or tables as in a spec: `{"name": "relearn", "k": 5}`. If a name occurs twice, the second one
            needs a `label`.
        audits: Names or tables, as for `attacks`. The objective's own metrics always run. `u_lira` trains as many
            shadow models as its settings say and runs the method on half of them. They are kept with the case, as
            references are.
        references: Number of models to retrain. They are kept with the case, so a second audit retrains none. At least
            3 are needed for a verdict other than an accusation. Without a recipe none are trained.
        gallery: Copy some of the forget examples, and the models' answers to them, into the result, its record and its
            report. Off by default, because the examples may be personal.
        folder: Stores outputs in `folder/cache`. An audit that was interrupted, or is repeated in another session, then
            computes only what is missing. This needs importable recipe functions; if the file of one changes, all
            outputs are computed again. Otherwise outputs stay in memory, and a message says so.
        workers: Number of processes that run stages in parallel; more than 1 needs `folder`. The numbers do not depend
            on it. If a part of the case cannot be sent to another process, all stages run in this one, and a message
            says so.

    Returns:
        The result, with rows and verdict.

    Raises:
        ExpungeError: A name or setting is unknown, two parts have the same label, an audit cannot measure such a model,
            or training diverged.
    """
    expect(done, Unlearned, "done", "what expunge.unlearn returned, as the first argument")
    expect(case, Case, "case", "what expunge.case returned, as the second argument")
    always = list(case.problem.objective.audits)
    run_attacks, run_audits = parts_of("attack", attacks), parts_of("audit", always) | parts_of("audit", audits)
    _check(done, case, run_attacks, run_audits)
    count = references if case.recipe is not None else 0
    entries = entries_of(attacks), (*entries_of(always), *entries_of(audits))
    store, addresses = _store_of(case, folder)
    plan = CasePlan(spec_of(done, count, *entries, gallery), case, done, run_attacks, run_audits, count, addresses)
    # What was computed from a missing output is not believed, so the original is stored before what came of it.
    originals = [stage for stage in plan.stages if stage.kind == "original"]
    run_stages(plan, store, originals, executor_of(None, 1), lambda *_: None, lambda _: None)
    _hand_over(plan, store)
    plan, unread = _spread(plan, store, workers), _Unread(plan, store)
    executor = executor_of(None, workers if plan.elsewhere else 1)
    run_stages(plan, store, plan.stages, executor, lambda stage, _: unread.finished(stage), lambda _: None)
    return Result(plan, store)


def _spread(plan: CasePlan, store: Store | MemoryStore, workers: int) -> CasePlan:
    """The plan; with several workers, if possible, together with what other processes need to run it."""
    if workers == 1:
        return plan
    home = home_of(plan, store.root.parent) if isinstance(store, Store) else "several workers need folder="
    if isinstance(home, str):
        Progress().say(f"all stages run in this process: {home}")
        return plan
    return replace(plan, elsewhere=home)


def _store_of(case: Case, folder: str | Path | None) -> tuple[Store | MemoryStore, dict[str, str]]:
    """The store for outputs; if it is a folder, also the addresses of data, model and training."""
    if folder is not None:
        addresses = addresses_of(case)
        if isinstance(addresses, dict):
            store = Store(Path(folder) / CACHE)
            store.open()
            return store, addresses
        Progress().say(f"outputs stay in memory, not in {folder}: {addresses} cannot be imported by its name")
    return _stores.setdefault(case, MemoryStore()), {}


def _hand_over(plan: CasePlan, store: Store | MemoryStore) -> None:
    """Store what `unlearn` returned as the output of the methods' stages."""
    for stage in (stage for stage in plan.stages if stage.kind == "unlearn"):
        step = plan.steps[stage.model]
        before = step.after.cost if step.after else Cost(0, 0.0)
        changed = weights_differ(step.after.model if step.after else plan.case.original, step.model)
        gradients, seconds = step.cost.gradients - before.gradients, step.cost.seconds - before.seconds
        facts: dict[str, Any] = {"gradients": gradients, "seconds": round(seconds, 3), "changed": changed}
        facts["kept"] = kept_below(plan.case.original, step.model)
        store.put(stage.key, {WEIGHTS: checkpoint.dump(step.model)}, {"stage": stage.name, **facts})


class _Unread:
    """Drops weights from memory that no remaining stage reads: there are many attacked models, and `done` is kept."""

    def __init__(self, plan: CasePlan, store: Store | MemoryStore) -> None:
        self.store = store
        self.readers = {stage.key: set[str]() for stage in plan.stages if stage.kind in ("attack", "unlearn")}
        for stage in (stage for stage in plan.stages if stage.kind != "unlearn"):
            for key in self.readers.keys() & set(stage.needs):
                self.readers[key].add(stage.key)

    def finished(self, stage: Stage) -> None:
        for key, readers in self.readers.items():
            readers.discard(stage.key)
            if isinstance(self.store, MemoryStore) and all(self.store.has(reader) for reader in readers):
                self.store.drop(key, WEIGHTS)


def report(result: Result, path: str | Path) -> Path:
    """Write the report page of a result; returns its path."""
    from expunge.reporting.page import write_report

    with tempfile.TemporaryDirectory() as folder:
        page = write_report(result.save(folder)).read_text(encoding="utf-8")
    write_file(Path(path), page)
    return Path(path)


def _check(done: Unlearned, case: Case, attacks: Mapping[str, Any], audits: Mapping[str, Any]) -> None:
    """Refuse, before references are trained, what would fail after it."""
    for kind, parts in (("attack", attacks), ("audit", audits)):
        for label, part in parts.items():
            if isinstance(part, Attack | Audit):
                refuse_model(part, case.original, f"{kind} {label!r}")
                part.check(case.problem)
    for label, part in audits.items():
        refuse_objective(part.needs, case.problem.objective, where=f"audit {label!r}")
        if part.shadow_pairs:
            _check_shadows(done, case)


def _check_shadows(done: Unlearned, case: Case) -> None:
    if case.recipe is None:
        raise MissingError("there is no recipe to train shadow models with", where="case", remedy="pass recipe=")
    if any(step.part is None or not step.part.repeatable for step in chain(done)):
        raise MissingError(
            "it is not known how the model was unlearned, and shadow models need the same method",
            where="case",
            remedy="make it with expunge.unlearn, by another method than checkpoint",
        )
