"""One stage at a time on a model of the user's own: unlearn it, or judge what somebody else unlearned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from expunge.base.errors import SpecError, unknown
from expunge.base.record import Store, write_file
from expunge.base.spec import CACHE, Entry, Spec
from expunge.pipeline.plan import Plan
from expunge.pipeline.run import prepare
from expunge.pipeline.schedule import run_stages
from expunge.pipeline.stages import WEIGHTS
from expunge.reporting.progress import Progress


def unlearn_one(spec: Spec, out: Path, label: str | None, save: Path | None, progress: Progress) -> dict[str, Any]:
    """Run one method of the spec with its first seed and write the unlearned weights.

    Args:
        spec: What to unlearn, from which model.
        out: Folder for runs; outputs of stages go to its cache and are reused by `run`.
        label: The method; the spec's first by default.
        save: File for the weights; `<label>.safetensors` by default.
        progress: Told of each stage.

    Returns:
        Path of the weights, method, seconds and gradients.

    Raises:
        ExpungeError: The spec has no such method, or a stage failed.
    """
    labels = [entry.label for entry in spec.method]
    if not labels:
        raise SpecError("there is no method", where="spec", remedy='add [[method]] with name = "random_relabel"')
    chosen = label or labels[0]
    if chosen not in labels:
        raise unknown("method", chosen, labels, where="--method")
    plan, store = Plan(replace(spec, seeds=spec.seeds[:1], attack=(), audit=(), gate=())), Store(out / CACHE)
    prepare(plan, store)
    wanted = {stage.key: stage for stage in plan.stages}
    final = next(stage for stage in plan.stages if stage.kind == "unlearn" and stage.model == chosen)
    needed = [wanted[key] for key in final.needs] + [final]
    progress.start(len(needed), {s.key: 0.0 for s in needed if not store.has(s.key)}, 1)
    run_stages(plan, store, needed, 1, lambda stage, f: progress.finished(stage.key, stage.name, f["seconds"]))
    path, facts = save or Path(f"{chosen}.safetensors"), store.facts(final.key)
    write_file(path, store.path(final.key, WEIGHTS).read_bytes())
    return {"model": str(path), "method": chosen, "seconds": facts["seconds"], "gradients": facts["gradients"]}


def audit_of(spec: Spec, model: Path) -> Spec:
    """The spec that judges the weights in a file instead of running methods.

    Raises:
        SpecError: The spec trains its own originals, of which the file cannot be the unlearned version.
    """
    if spec.weights is None:
        raise SpecError(
            "the spec has no weights of yours",
            where="model",
            allowed='weights = "original.safetensors", the model before it was unlearned',
            remedy="add it; the verdict is about one model",
        )
    entry = Entry("checkpoint", model.stem, {"path": str(model.resolve())})
    return replace(spec, name=f"{spec.name}-{model.stem}", method=(entry,), gate=())
