"""A run's folder: its spec, environment, scores, models, rows, verdicts and, last of all, the manifest."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from expunge.base.errors import SpecError
from expunge.base.manifest import DIAGNOSIS, ENVIRONMENT, SPEC, FileRecord, Manifest, StageRecord, write_manifest
from expunge.base.memory import MemoryStore
from expunge.base.reading import append_inside, refuse_links
from expunge.base.record import (
    Store,
    canonical,
    file_digest,
    rows_to_text,
    spelled,
    sweep_files,
    write_file,
)
from expunge.evidence.table import Table, read_table, verdicts_text
from expunge.pipeline.diagnosis import diagnosis
from expunge.pipeline.plan import Plan, Stage
from expunge.pipeline.stage_kind import kind_of

FIXED = (
    "data", "objective", "augmentation", "model", "train", "forget", "seeds", "threads", "device", "precision",
)  # fmt: skip
"""Settings that two runs in the same folder must share: otherwise one table could not hold the rows of both."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, `runs/<name>`."""

    root: Path

    def open(self, resolved: dict[str, Any]) -> None:
        """Prepare the folder for a run of this spec.

        Raises:
            SpecError: The folder holds a run of another spec. Nothing in it is changed.
            RunError: The folder cannot be written to.
        """
        refuse_links(self.root)
        self.refuse_other(resolved)
        self.describe(resolved)

    def describe(self, resolved: dict[str, Any]) -> None:
        """Write the spec and the environment.

        Raises:
            RunError: The folder cannot be written to.
        """
        sweep_files(self.root)
        write_file(self.root / SPEC, json.dumps(spelled(resolved), indent=1) + "\n")
        ran_on = {key: resolved.get(key) for key in ("device", "precision")}
        write_file(self.root / ENVIRONMENT, json.dumps({**environment(), **ran_on}, indent=1) + "\n")

    def refuse_other(self, resolved: dict[str, Any]) -> None:
        """Refuse what `open` would refuse, and write nothing.

        Raises:
            SpecError: The folder holds a run of another spec.
        """
        path = self.root / SPEC
        if path.is_file():
            stored = self._stored(path)
            wanted = json.loads(canonical(resolved))
            # Older records name no device: those runs used the CPU. Without an objective it was inferred, as it is now.
            stored = {"device": "cpu", "precision": "float32", "objective": wanted.get("objective"), **stored}
            differing = [key for key in FIXED if stored.get(key) != wanted.get(key)]
            if differing:
                other = "other" if differing[0] in ("seeds", "threads") else "another"
                raise SpecError(
                    f"it holds a run with {other} {differing[0]}: {_first_difference(stored, wanted, differing[0])}",
                    where=str(self.root),
                    allowed=f"the same {', '.join(FIXED)}; methods, attacks and audits may change",
                    remedy="give the spec another name, or --out another folder",
                )

    def _stored(self, path: Path) -> dict[str, Any]:
        try:
            spec = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            spec = None
        if not isinstance(spec, dict):
            remedy = "give the spec another name, or --out another folder"
            raise SpecError("this is not the spec of a run", where=str(path), remedy=remedy)
        return spec

    def event(self, what: str, facts: dict[str, Any]) -> None:
        """Append a line to the log of events."""
        line = json.dumps({"at": datetime.now(UTC).isoformat(timespec="seconds"), "what": what, **facts})
        append_inside(self.root, "events.jsonl", line + "\n")

    def write(self, plan: Plan, store: Store | MemoryStore) -> Table:
        """Write the finished run's scores, models, rows and verdicts into the folder; the manifest comes last."""
        refuse_links(self.root)
        # An earlier run in this folder may have written forget examples, and this spec may not ask for any.
        shutil.rmtree(self.root / "examples", ignore_errors=True)
        self._keep_diagnosis(diagnosis(plan, store))
        stages = tuple(self._keep(stage, plan, store) for stage in plan.stages)
        manifest = Manifest(
            models=tuple(plan.models),
            seeds=plan.spec.seeds,
            attacks=tuple(plan.attacks),
            required=tuple(entry.label for entry in plan.spec.audit if entry.required),
            about_one_model=plan.about_one_model,
            versions=plan.versions(),
            stages=stages,
        )
        return finish(self.root, manifest)

    def _keep_diagnosis(self, diagnoses: list[dict[str, Any]]) -> None:
        """Write the diagnostics' results, and remove those of an earlier run in this folder."""
        shutil.rmtree(self.root / "diagnosis", ignore_errors=True)
        (self.root / DIAGNOSIS).unlink(missing_ok=True)
        if diagnoses:
            write_file(self.root / DIAGNOSIS, json.dumps(spelled(diagnoses), indent=1, allow_nan=False) + "\n")

    def _keep(self, stage: Stage, plan: Plan, store: Store | MemoryStore) -> StageRecord:
        files: dict[str, FileRecord] = {}
        for source, folder in kind_of(stage.kind).written(plan).items():
            if folder is not None and folder not in plan.left_out:
                name = f"{folder}/{file_name(stage)}{Path(source).suffix}"
                files[folder] = FileRecord(name, store.digest(stage.key, source))
                store.keep(stage.key, source, self.root / name)
        return StageRecord(
            kind=stage.kind,
            model=stage.model,
            seed=stage.seed,
            attack=stage.attack,
            part=stage.part,
            key=stage.key,
            files=files,
            **spent(stage, plan, store),
        )


def spent(stage: Stage, plan: Plan, store: Store | MemoryStore) -> dict[str, Any]:
    """Per-example gradients and seconds that a stage took.

    The cost of a method includes its statistics, and the cost of all methods that run before it. The gradients are
    `None` if one of these methods ran elsewhere.
    """
    if stage.kind != "unlearn":
        facts = store.facts(stage.key)
        return {"gradients": facts["gradients"], "seconds": round(facts["seconds"], 3)}
    keys = list(_of_method(stage, plan))
    costs = [store.facts(key) for key in keys]
    priced = all(getattr(plan.methods[entry.label], "priced", True) for entry in plan.spec.chain(stage.model))
    gradients = sum(cost["gradients"] for cost in costs) if priced else None
    return {"gradients": gradients, "seconds": round(sum(cost["seconds"] for cost in costs), 3)}


def _of_method(stage: Stage, plan: Plan) -> Iterator[str]:
    """Keys of all stages that lead from the original to a method's model."""
    yield stage.key
    if "statistics" in stage.inputs:
        yield stage.input("statistics")
    before = plan.by_key[stage.input("model")]
    if before.kind == "unlearn":
        yield from _of_method(before, plan)


def finish(root: Path, manifest: Manifest) -> Table:
    """Judge the scores in the folder, and write rows, verdicts and, last of all, the manifest.

    Args:
        root: A folder that already holds every file that the manifest names.
        manifest: The manifest without the digests of the files at the top of the folder.

    Returns:
        The table of all score files.
    """
    table = read_table(root, manifest)
    write_file(root / "results.jsonl", rows_to_text(table.rows()))
    write_file(root / "verdicts.json", verdicts_text(table))
    names = (SPEC, ENVIRONMENT, "results.jsonl", "verdicts.json", DIAGNOSIS)
    digests = {name: file_digest(root / name) for name in names if (root / name).is_file()}
    write_manifest(root, replace(manifest, files=digests))
    return table


_ONE_A_MODEL = ("original", "reference", "unlearn", "attack", "gallery")
"""Kinds with one stage per model, seed and attack: these three name its files."""


def file_name(stage: Stage) -> str:
    """A readable name that is unique within the run."""
    if stage.kind == "diagnostic":
        return f"s{stage.seed}-{stage.part}"
    if stage.kind == "measure":
        return f"measure-{stage.key}"
    part = {"audit": stage.part, **dict.fromkeys(_ONE_A_MODEL)}.get(stage.kind, f"{stage.kind}-{stage.part}".strip("-"))
    words = [stage.model, f"s{stage.seed}", stage.attack, part]
    return "-".join(word for word in words if word)


def environment() -> dict[str, Any]:
    """Versions and machine, on which the numbers may depend, and the commit."""
    packages = ("expunge", "torch", "numpy", "scipy", "safetensors")
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "packages": {name: version(name) for name in packages},
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of this code if it runs from its own checkout; never that of a project that has it installed."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        for command in (["ls-files", "--error-unmatch", Path(__file__).name], ["rev-parse", "HEAD"]):
            answer = subprocess.run([*git, *command], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def _first_difference(stored: dict[str, Any], wanted: dict[str, Any], key: str) -> str:
    before, after = stored.get(key), wanted.get(key)
    if isinstance(before, dict) and isinstance(after, dict):
        inner = next(name for name in [*after, *before] if before.get(name) != after.get(name))
        return f"{key}.{inner} was {before.get(inner)!r}, is {after.get(inner)!r}"
    return f"{key} was {before!r}, is {after!r}"
