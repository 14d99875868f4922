"""Run a spec: plan the stages, run what is missing, judge the models, and write the record."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from expunge.base.errors import GateFailed, MissingError, SpecError
from expunge.base.spec import CACHE, Spec
from expunge.base.store import Store
from expunge.core import checkpoint
from expunge.core.adapter import targets_of
from expunge.core.contracts import Attack, Audit
from expunge.core.copies import say_copies
from expunge.core.first_pass import EXAMPLES, first_pass
from expunge.core.method import Method
from expunge.core.own_training import require_independent
from expunge.core.problem import require_examples, require_unretained
from expunge.core.refusals import refuse_mixing, refuse_model, refuse_unmet, unmet_needs
from expunge.core.size import built, refuse_too_large
from expunge.core.texts import require_text_model
from expunge.evidence.reasons import CHANGED_NOTHING
from expunge.evidence.table import Table
from expunge.evidence.verdict import Verdict
from expunge.pipeline.beforehand import Beforehand
from expunge.pipeline.diagnosis import diagnosis
from expunge.pipeline.earlier import refuse_other, replaced
from expunge.pipeline.executor import executor_of
from expunge.pipeline.folder import RunFolder, file_name, spent
from expunge.pipeline.forecast import StageForecast, forecast
from expunge.pipeline.hand_over import Saved
from expunge.pipeline.memory import MemoryForecast, forecast_memory
from expunge.pipeline.outstanding import outstanding
from expunge.pipeline.plan import Plan, Stage
from expunge.pipeline.schedule import run_stages
from expunge.reporting.progress import Progress
from expunge.train.chance import no_better_than_chance
from expunge.train.loop import evaluation_size

LONGEST_NAME = 190
"""Bytes of a file's name without its ending; file systems allow 255, and a temporary name is longer."""


@dataclass(frozen=True)
class RunResult:
    """The results of a run."""

    folder: Path
    table: Table
    rows: list[dict[str, Any]]
    verdicts: list[Verdict]
    costs: dict[str, dict[str, float]]
    """Kind of stage -> number of stages, seconds and per-example gradients, reused outputs included."""
    diagnosis: list[dict[str, Any]]
    """The result of each diagnostic, in the form of `pipeline.diagnosis`; empty without diagnostics."""
    saved: Sequence[Path] = ()
    """Folders of the models that were written on request."""
    warning: str = ""
    """Said if no audit shows that the originals know the forget set; empty otherwise."""

    def as_json(self) -> dict[str, Any]:
        """The table that `run --json` prints."""
        return {
            "run": str(self.folder),
            "status": "done",
            "rows": self.rows,
            "verdicts": [verdict.as_json() for verdict in self.verdicts],
            **({"diagnosis": self.diagnosis} if self.diagnosis else {}),
            **({"warning": self.warning} if self.warning else {}),
            **({"saved": [str(folder) for folder in self.saved]} if self.saved else {}),
        }


def run(
    spec: Spec,
    out: Path,
    *,
    workers: int = 1,
    on: str | None = None,
    progress: Progress | None = None,
    save: Path | None = None,
) -> RunResult:
    """Run a spec, or the part of it that is missing.

    Args:
        spec: The spec to run.
        out: Folder for runs; the record goes to `out/<name>`, outputs of stages to `out/cache`.
        workers: How many stages run at the same time; the numbers do not depend on it.
        on: Name of the executor, or `module:Class`. By default, one worker runs in this process, and several workers in
            processes.
        progress: Shows each stage; silent by default.
        save: Folder for the unlearned models of the first seed, each in a folder `<save>/<label>` with a model card;
            by default none is written. The record keeps their weights in any case.

    Returns:
        Rows, verdicts and costs; the record holds them too.

    Raises:
        ExpungeError: The spec is bad, the run's folder holds another spec, or a stage failed. Finished stages are kept.
    """
    executor = executor_of(on, workers)
    plan, store, folder = Plan(spec), Store(out / CACHE), RunFolder(out / spec.name)
    saved = None if save is None else Saved(save, plan)
    _check(plan)
    _refuse_memory(plan, store, workers)
    folder.open(plan)
    store.open()
    word = replaced(folder.root, plan)
    if progress is not None and word is not None:
        progress.say(word)
    if progress is not None:
        expected = {f.stage.key: f.seconds for f in forecast(plan, store) if not f.done}
        progress.start(len(plan.stages), expected, workers)

    def begun(stage: Stage) -> None:
        if progress is not None:
            progress.begun(stage.key, stage.name)

    def report(stage: Stage, facts: dict[str, Any]) -> None:
        if progress is not None:
            progress.finished(stage.key, stage.name, facts["seconds"])
            if facts.get("changed") is False:
                progress.say(f"{stage.name}: {CHANGED_NOTHING}")
        folder.event(stage.name, {**facts, "key": stage.key})

    say = progress.say if progress else None
    beforehand = Beforehand(plan, store, say or (lambda _: None))
    try:
        run_stages(plan, store, plan.stages, executor, report, begun, say, beforehand)
    finally:
        if progress is not None:
            progress.clear()
    table = folder.write(plan, store)
    folders = saved.write(store, folder.root) if saved else []
    rows, verdicts, diagnoses = table.rows(), table.verdicts(), diagnosis(plan, store)
    spent_on = costs(plan, store)
    return RunResult(folder.root, table, rows, verdicts, spent_on, diagnoses, folders, beforehand.warning)


def dry_run(spec: Spec, out: Path, workers: int = 1) -> tuple[list[StageForecast], MemoryForecast | None]:
    """What a run would do: every stage, whether its output is stored already, its expected seconds, and the memory.

    Raises:
        ExpungeError: As for `run`, if the mistake can be seen before the run. Nothing is written.
    """
    plan, store = Plan(spec), Store(out / CACHE)
    _check(plan)
    refuse_other(out / spec.name, plan)
    memory = _refuse_memory(plan, store, workers)
    return forecast(plan, store), memory


def _refuse_memory(plan: Plan, store: Store, workers: int) -> MemoryForecast | None:
    """The memory that the missing stages need.

    Raises:
        MissingError: It is more than this machine has.
    """
    missing = outstanding(plan, store, plan.stages)
    memory = forecast_memory(plan, [stage for stage in plan.stages if stage.key in missing], workers)
    if memory is not None:
        memory.refuse()
    return memory


def check_gates(spec: Spec, verdicts: list[Verdict]) -> None:
    """Compare the verdicts with the spec's gates.

    Raises:
        GateFailed: A verdict is not the one that a gate requires.
    """
    by_model = {verdict.model: verdict.verdict for verdict in verdicts}
    for gate in spec.gate:
        if by_model[gate.method] != gate.verdict:
            finding = f"the verdict is {by_model[gate.method]!r}"
            raise GateFailed(finding, where=f"gate for {gate.method}", allowed=repr(gate.verdict))


def costs(plan: Plan, store: Store) -> dict[str, dict[str, float]]:
    """Stages, seconds and gradients (NaN if unknown) by kind of stage; for methods by label, with methods before it."""
    totals: dict[str, dict[str, float]] = {}
    for stage in plan.stages:
        name = f"unlearn {stage.model}" if stage.kind == "unlearn" else stage.kind
        entry = totals.setdefault(name, {"stages": 0, "seconds": 0.0, "gradients": 0})
        cost = spent(stage, plan, store)
        entry["stages"] += 1
        entry["seconds"] += cost["seconds"]
        entry["gradients"] += math.nan if cost["gradients"] is None else cost["gradients"]
    return totals


def _check(plan: Plan) -> None:
    """Refuse, before training, what would fail after it; checks the first seed's problem if that is cheap to make."""
    require_examples(plan.data)
    _check_untrained(plan)
    if not plan.spec.names_code:  # the user's code is not run more often than needed
        refuse_too_large(plan.architecture, plan.data, where="model")
    fresh = built(lambda: plan.recipe(plan.data).build(0), where="model")
    if ":" in plan.spec.model.name:  # code of the user's, which may return the same module twice
        require_independent(plan.recipe(plan.data).build(1), {"that of an earlier call": fresh}, "model")
    for label, method in plan.methods.items():
        if isinstance(method, Method):
            refuse_unmet(unmet_needs(method, plan.data.objective, fresh, recipe=plan.trains), where=f"method {label!r}")
    for (kind, label), adapter in plan.adapters.items():
        targets_of(fresh, adapter, f"{kind} {label!r}.adapter" if label else f"{kind}.adapter")
    _check_shadows(plan)
    _check_required(plan)
    _check_names(plan)
    model = plan.original(plan.data)
    if model is None:
        model = fresh
    else:
        # Stages do the same: they store the weights and load them into a fresh model.
        checkpoint.restore(fresh, checkpoint.dump(model), "model")
    if plan.data.has_tokens:
        require_text_model(model, plan.data.objective, plan.data.inputs, plan.data.targets)
    few = plan.data.train[: min(EXAMPLES, evaluation_size(plan.data))]
    first_pass(model, plan.data.objective, plan.data.batch(few))
    if len(plan.data.test):  # a problem without a test set is refused when it is made
        several = torch.stack([plan.data.train[0], plan.data.train[-1], plan.data.test[0]])
        refuse_mixing(model, plan.data.objective, plan.data, several)
    for kind, parts in (("method", plan.methods), ("attack", plan.attacks), ("audit", plan.audits)):
        for label, part in parts.items():
            # Plain functions have no checks.
            if isinstance(part, Method | Attack | Audit):
                refuse_model(part, model, f"{kind} {label!r}")
    if not plan.task.measures:
        problem = plan.problem(plan.spec.seeds[0], {})
        say_copies(problem)
        for checked in (*plan.methods.values(), *plan.attacks.values(), *plan.audits.values()):
            if isinstance(checked, Method | Attack | Audit):
                checked.check(problem)
        require_unretained(problem)
        warning = no_better_than_chance(model, problem) if plan.gives_original else ""
        if warning:
            Progress().say(warning)


def _check_untrained(plan: Plan) -> None:
    """Refuse what trains models if the spec says that none can be trained."""
    if plan.trains:
        return
    if not plan.gives_original:
        raise SpecError(
            "the spec trains its own originals, so it can train references too",
            where="references",
            allowed="a model of yours: [model] with weights, or hf",
            remedy="leave references out",
        )
    training = [f"audit {label!r}" for label, audit in plan.audits.items() if audit.shadow_pairs]
    training += ["forget"] if plan.task.measures else []
    if training:
        raise MissingError(
            "it trains models, and the spec says that none can be trained",
            where=training[0],
            remedy="leave it out, or leave references out if you know the training",
        )


def _check_shadows(plan: Plan) -> None:
    """Refuse shadows of a method that only reads a file: all would be copies of the audited model."""
    fixed = [label for label, method in plan.methods.items() if not method.repeatable]
    for label, audit in plan.audits.items() if fixed else ():
        if audit.shadow_pairs:
            raise MissingError(
                f"it runs the method again on shadow models, and {fixed[0]!r} only reads a file",
                where=f"audit {label!r}",
                remedy="leave the audit out",
            )


def _check_required(plan: Plan) -> None:
    """Refuse a required audit that is not repeated after attacks: without it, no verdict can be `erased`."""
    for entry in plan.spec.audit if plan.attacks else ():
        audit = plan.audits[entry.label]
        if entry.required and not audit.after_attack:
            settable = "after_attack" in audit.settings()
            raise SpecError(
                "it is required, but not repeated after attacks, so no verdict could be `erased`",
                where=f"audit {entry.label!r}",
                remedy=f"leave out {'required, or set after_attack = true' if settable else 'required'}",
            )


def _check_names(plan: Plan) -> None:
    """Refuse labels that give two outputs the same file, or a file a name that file systems do not allow."""
    seen: dict[str, Stage] = {}
    for stage in plan.stages:
        name = file_name(stage)
        if len(name.encode()) > LONGEST_NAME:
            raise SpecError(
                f"the file of {stage.name!r} would have a name of {len(name.encode())} bytes",
                where="label",
                allowed=f"{LONGEST_NAME} bytes",
                remedy="give methods, attacks and audits shorter labels",
            )
        # Some file systems do not distinguish upper and lower case.
        first = seen.setdefault(name.casefold(), stage)
        if first is not stage:
            raise SpecError(
                f"{first.name!r} and {stage.name!r} would share the file {file_name(stage)}",
                where="label",
                remedy="give a method, attack or audit another label",
            )


def prepare(plan: Plan, store: Store) -> None:
    """Refuse a plan that is known to fail, and prepare the store.

    Raises:
        ExpungeError: The spec is bad, or the folder cannot be written to.
    """
    _check(plan)
    store.open()


def default_workers() -> int:
    """One process per core that this process may use."""
    return max(len(os.sched_getaffinity(0)), 1) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
