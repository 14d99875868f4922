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
from expunge.base.record import (
    Store,
    canonical,
    file_digest,
    rows_to_text,
    spelled,
    storage_error,
    sweep_files,
    write_file,
)
from expunge.evidence.table import Table, read_table, verdicts_text
from expunge.pipeline.diagnosis import diagnosis
from expunge.pipeline.plan import Plan, Stage
from expunge.pipeline.stage_kind import kind_of

FIXED = ("data", "model", "train", "forget", "seeds", "threads", "device", "precision")
"""What must not differ between two runs into one folder: their rows could not stand in one table."""


@dataclass(frozen=True)
class RunFolder:
    """`runs/<name>`."""

    root: Path

    def open(self, resolved: dict[str, Any]) -> None:
        """Take the folder for this spec.

        Raises:
            SpecError: It holds a run of another spec; nothing in it is changed.
            RunError: It cannot be written to.
        """
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
        """Refuse what `open` would, and write nothing.

        Raises:
            SpecError: The folder holds a run of another spec.
        """
        path = self.root / SPEC
        if path.is_file():
            held = self._held(path)
            wanted = json.loads(canonical(resolved))
            # Records of before devices could be named ran on the CPU.
            held = {"device": "cpu", "precision": "float32", **held}
            differing = [key for key in FIXED if held.get(key) != wanted[key]]
            if differing:
                other = "other" if differing[0] in ("seeds", "threads") else "another"
                raise SpecError(
                    f"it holds a run with {other} {differing[0]}: {_first_difference(held, wanted, differing[0])}",
                    where=str(self.root),
                    allowed=f"the same {', '.join(FIXED)}; methods, attacks and audits may change",
                    remedy="give the spec another name, or --out another folder",
                )

    def _held(self, path: Path) -> dict[str, Any]:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if not isinstance(found, dict):
            remedy = "give the spec another name, or --out another folder"
            raise SpecError("this is no spec of a run", where=str(path), remedy=remedy)
        return found

    def event(self, what: str, facts: dict[str, Any]) -> None:
        """Append a line to the log of events."""
        line = json.dumps({"at": datetime.now(UTC).isoformat(timespec="seconds"), "what": what, **facts})
        try:
            with open(self.root / "events.jsonl", "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise storage_error(error, self.root / "events.jsonl") from None

    def write(self, plan: Plan, store: Store | MemoryStore) -> Table:
        """Put the finished run's scores, models, rows and verdicts into the folder, the manifest last."""
        # Examples that an earlier run into this folder showed must not outlive the wish to show them.
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

    def _keep_diagnosis(self, found: list[dict[str, Any]]) -> None:
        """Write what the diagnostics said, or remove what those of an earlier run into this folder did."""
        shutil.rmtree(self.root / "diagnosis", ignore_errors=True)
        (self.root / DIAGNOSIS).unlink(missing_ok=True)
        if found:
            write_file(self.root / DIAGNOSIS, json.dumps(spelled(found), indent=1, allow_nan=False) + "\n")

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

    Those of a method include its statistics and the methods that it goes after, with theirs. The gradients are none
    where one of these methods was run elsewhere.
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
    """Judge what lies in the folder and write rows, verdicts and, last of all, the manifest.

    Args:
        root: A folder that already holds every file that the manifest names.
        manifest: But for the digests of the files that lie in the folder itself.

    Returns:
        The table that the score files hold.
    """
    table = read_table(root, manifest)
    write_file(root / "results.jsonl", rows_to_text(table.rows()))
    write_file(root / "verdicts.json", verdicts_text(table))
    names = (SPEC, ENVIRONMENT, "results.jsonl", "verdicts.json", DIAGNOSIS)
    digests = {name: file_digest(root / name) for name in names if (root / name).is_file()}
    write_manifest(root, replace(manifest, files=digests))
    return table


_ONE_A_MODEL = ("original", "reference", "unlearn", "attack", "gallery")
"""Kinds of which there is one stage for each model, seed and attack, so that these name its files."""


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
    """What the numbers may depend on, and the commit."""
    packages = ("expunge", "torch", "numpy", "scipy", "safetensors")
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "packages": {name: version(name) for name in packages},
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of this code where it runs from a checkout of its own; not that of a project it is installed into."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        for command in (["ls-files", "--error-unmatch", Path(__file__).name], ["rev-parse", "HEAD"]):
            found = subprocess.run([*git, *command], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def _first_difference(held: dict[str, Any], wanted: dict[str, Any], key: str) -> str:
    a, b = held.get(key), wanted.get(key)
    if isinstance(a, dict) and isinstance(b, dict):
        inner = next(name for name in [*b, *a] if a.get(name) != b.get(name))
        return f"{key}.{inner} was {a.get(inner)!r}, is {b.get(inner)!r}"
    return f"{key} was {a!r}, is {b!r}"
