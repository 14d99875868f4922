"""Single steps on the user's own model: diagnose it, unlearn on it, or judge a model that was unlearned elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from expunge.base.errors import ExpungeError, SpecError, unknown
from expunge.base.model_folder import refuse_foreign
from expunge.base.record import write_file
from expunge.base.spec import CACHE, Spec
from expunge.base.spec_tables import Entry, label_of
from expunge.base.store import Store
from expunge.pipeline.default_diagnostics import default_set, planned, with_plan
from expunge.pipeline.diagnosis import diagnosis
from expunge.pipeline.executor import executor_of
from expunge.pipeline.folder import spent
from expunge.pipeline.forecast import forecast, gradients
from expunge.pipeline.hand_over import OPTION, unlearned_stage, write_unaudited
from expunge.pipeline.outstanding import leading_to, outstanding
from expunge.pipeline.parts import Parts
from expunge.pipeline.plan import Plan, Stage
from expunge.pipeline.run import prepare
from expunge.pipeline.schedule import run_stages
from expunge.pipeline.stage import WEIGHTS
from expunge.reporting.progress import Progress, clock_text


def unlearn_one(spec: Spec, out: Path, label: str | None, save: Path | None, progress: Progress) -> dict[str, Any]:
    """Run one method of the spec, after the methods that come before it, with the first seed; write the weights.

    Args:
        spec: Names the model, the forget set and the method.
        out: Folder for runs; outputs of stages go to its cache and are reused by `run`.
        label: The method; the spec's first by default.
        save: A file for the weights, `<label>.safetensors` by default; or, under a name without that ending, a folder
            for the model with its card, and for a model of transformers all that `from_pretrained` reads.
        progress: Shows each stage.

    Returns:
        Path of the file or folder, method, seconds and gradients; seconds and gradients include the methods before it.

    Raises:
        ExpungeError: The spec has no such method, or a stage failed.
    """
    labels = [entry.label for entry in spec.method]
    if not labels:
        raise SpecError("there is no method", where="spec", remedy='add [[method]] with name = "random_relabel"')
    chosen = label or labels[0]
    if chosen not in labels:
        raise unknown("method", chosen, labels, where="--method")
    path = save or Path(f"{chosen}.safetensors")
    as_folder = path.suffix != ".safetensors"
    if as_folder:
        refuse_foreign(path, OPTION)
    plan, store = (
        Plan(replace(spec, seeds=spec.seeds[:1], attack=(), audit=(), diagnostic=(), gate=())),
        Store(out / CACHE),
    )
    prepare(plan, store)
    final = unlearned_stage(plan, chosen)
    stages = leading_to([final], plan)
    _start(plan, store, stages, progress)
    _run(plan, store, stages, progress)
    if as_folder:
        write_unaudited(plan, store, chosen, path)
    else:
        write_file(path, store.read(final.key, WEIGHTS))
    return {"model": str(path), "method": chosen, **spent(final, plan, store)}


def diagnose_one(spec: Spec, out: Path, progress: Progress) -> list[dict[str, Any]]:
    """Run the spec's diagnostics, or the default set if it names none, on the original of the first seed.

    Args:
        spec: Its original is trained or loaded, unless it is stored already. Diagnostics examine the spec's first
            method that is descent with ascent by SGD.
        out: Folder for runs; outputs of stages go to its cache and are reused by `run`.
        progress: Shows each stage.

    Returns:
        The result of each diagnostic, see `pipeline.diagnosis`.

    Raises:
        ExpungeError: The spec is bad or a stage failed. If the spec names no diagnostics, only if all of them failed.
    """
    bare = replace(
        spec, seeds=spec.seeds[:1], method=(), attack=(), audit=(), gate=(), diagnostic=_diagnostics(spec, progress)
    )
    plan, store = Plan(bare), Store(out / CACHE)
    prepare(plan, store)
    stages = [stage for stage in plan.stages if stage.kind in ("measure", "original", "diagnostic")]
    _state_cost(plan, store, progress)
    _start(plan, store, stages, progress)
    if spec.diagnostic:
        _run(plan, store, stages, progress)
        return diagnosis(plan, store)
    return diagnosis(plan, store, _run_suitable(plan, store, stages, progress))


def _diagnostics(spec: Spec, progress: Progress) -> tuple[Entry, ...]:
    """The spec's diagnostics or the default set, set to the spec's first suitable method; reports what is left out."""
    parts = Parts(spec)
    plan, entries = planned(parts.methods.values()), spec.diagnostic
    if spec.method and not plan:
        progress.say("no method of the spec is descent with ascent by sgd, so diagnostics use their default settings")
    if not entries:
        chosen = default_set(parts.data)
        entries = tuple(Entry(name, name, settings) for name, settings in chosen.settings.items())
        for name, reason in chosen.left_out.items():
            progress.say(f"left out: {name}: {reason}")
    return tuple(replace(e, settings=with_plan(e.name, e.settings, plan)) for e in entries)


def _state_cost(plan: Plan, store: Store, progress: Progress) -> None:
    """Report the expected cost of the missing diagnostics before any of them runs."""
    missing = [f for f in forecast(plan, store) if f.stage.kind == "diagnostic" and not f.done]
    if missing:
        passes = sum(gradients(plan, f.stage) for f in missing) / len(plan.data.train)
        seconds = clock_text(sum(f.seconds for f in missing))
        count = "1 diagnostic" if len(missing) == 1 else f"{len(missing)} diagnostics"
        progress.say(
            f"{count}: up to {passes:.1f} passes over the training set, which take about {seconds}, "
            "and up to a minute of linear algebra"
        )


def _run_suitable(plan: Plan, store: Store, stages: list[Stage], progress: Progress) -> list[str | None]:
    """Run what the diagnostics need, then each diagnostic on its own; returns the labels of those that succeeded."""
    _run(plan, store, [stage for stage in stages if stage.kind != "diagnostic"], progress)
    done: list[str | None] = []
    failure = None
    for stage in (stage for stage in stages if stage.kind == "diagnostic"):
        try:
            _run(plan, store, [stage], progress)
            done.append(stage.part)
        except ExpungeError as error:
            failure = error
            progress.say(f"left out: {error}")
    if failure is not None and not done:
        raise failure
    return done


def _start(plan: Plan, store: Store, stages: list[Stage], progress: Progress) -> None:
    """Start the progress display with the number of all stages, and the keys of those that are to run."""
    progress.start(len(stages), dict.fromkeys(outstanding(plan, store, stages), 0.0), 1)


def _run(plan: Plan, store: Store, stages: list[Stage], progress: Progress) -> None:
    try:
        run_stages(
            plan,
            store,
            stages,
            executor_of(None, 1),
            lambda stage, f: progress.finished(stage.key, stage.name, f["seconds"]),
            lambda stage: progress.begun(stage.key, stage.name),
            progress.say,
        )
    finally:
        progress.clear()


def audit_of(spec: Spec, model: Path) -> Spec:
    """A spec that judges the weights in a file, or in a Hugging Face folder, instead of running methods.

    Raises:
        SpecError: The spec trains its own originals, and the weights in the file cannot come from any of these.
    """
    if not Plan(spec).about_one_model:
        raise SpecError(
            "the spec does not name your original weights",
            where="model",
            allowed='weights = "original.safetensors", the model before it was unlearned',
            remedy="add it; the verdict is about one model",
        )
    path = model.resolve()
    label = label_of(path.name if path.is_dir() else path.stem)
    entry = Entry("checkpoint", label, {"path": str(path)})
    return replace(spec, name=f"{spec.name}-{label}", method=(entry,), gate=())
