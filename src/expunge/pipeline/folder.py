"""A run's folder: its spec, environment, scores, models, rows, verdicts and, last of all, the manifest."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from expunge.base.errors import ExpungeError
from expunge.base.manifest import (
    DIAGNOSIS,
    ENVIRONMENT,
    RULES,
    SPEC,
    FileRecord,
    Manifest,
    StageRecord,
    read_manifest,
    write_manifest,
)
from expunge.base.manifest import NAME as MANIFEST
from expunge.base.memory import MemoryStore
from expunge.base.reading import append_inside, refuse_links
from expunge.base.record import (
    file_digest,
    locked,
    make_private,
    rows_to_text,
    spelled,
    storage_error,
    sweep,
    write_file,
)
from expunge.base.store import Store
from expunge.core.problem import Problem
from expunge.evidence.table import Table, read_table, verdicts_text
from expunge.pipeline.diagnosis import diagnosis
from expunge.pipeline.earlier import refuse_other
from expunge.pipeline.plan import Plan, Stage
from expunge.pipeline.stage_kind import kind_of
from expunge.pipeline.worker import Worker

RESULTS = ("report.html", "results.jsonl", "verdicts.json", DIAGNOSIS)
"""Files of a finished run, besides the manifest, that an unfinished one does not have."""
_PLAIN = re.compile(r"\w[\w.-]*/\w[\w.+-]*")
"""The path of a file that a stage wrote; a received manifest may hold any."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, `runs/<name>`."""

    root: Path

    def open(self, plan: Plan) -> None:
        """Prepare the folder for a run of this plan. A finished record in it stays as it is until `write`.

        Raises:
            SpecError: The folder holds a run of another spec. Nothing in it is changed.
            RunError: The folder cannot be written to.
        """
        refuse_links(self.root)
        refuse_other(self.root, plan)
        make_private(self.root)
        sweep(self.root)
        with locked(self.root):  # another run of this spec may be writing its record
            if not (self.root / MANIFEST).is_file():
                # A run that was killed while it wrote its record may have left results.
                self._remove_results()
                self._describe(plan)

    def _describe(self, plan: Plan, counts: Mapping[str, int] | None = None) -> None:
        """Write the spec and the environment; of a finished run also how many examples each set holds."""
        resolved = plan.resolved()
        write_file(self.root / SPEC, json.dumps(spelled(resolved), indent=1) + "\n")
        ran_on = {key: resolved.get(key) for key in ("device", "precision")}
        digests = plan.inputs.digests()
        facts = {**environment(), **ran_on, **({"inputs": digests} if digests else {})}
        facts |= {"counts": dict(counts)} if counts else {}
        write_file(self.root / ENVIRONMENT, json.dumps(facts, indent=1) + "\n")

    def event(self, what: str, facts: dict[str, Any]) -> None:
        """Append a line to the log of events."""
        line = json.dumps({"at": datetime.now(UTC).isoformat(timespec="seconds"), "what": what, **facts})
        append_inside(self.root, "events.jsonl", line + "\n")

    def write(self, plan: Plan, store: Store | MemoryStore) -> Table:
        """Write the finished run's spec, scores, models, rows and verdicts into the folder; the manifest comes last.

        The manifest of an earlier run goes first. Killed in between, the folder holds no finished run, and never the
        results of one run beside the spec of another.

        Raises:
            RunError: The folder cannot be written to, or a stored output was damaged during the run.
        """
        refuse_links(self.root)
        make_private(self.root)
        with locked(self.root):
            earlier = self._remove_results()
            self._describe(plan, _counts(plan, store))
            diagnoses = diagnosis(plan, store)
            if diagnoses:
                write_file(self.root / DIAGNOSIS, json.dumps(spelled(diagnoses), indent=1, allow_nan=False) + "\n")
            stages = tuple(self._keep(stage, plan, store) for stage in plan.stages)
            self._remove(earlier - {file.path for stage in stages for file in stage.files.values()})
            manifest = Manifest(
                models=tuple(plan.rows),
                seeds=plan.spec.seeds,
                attacks=tuple(plan.attacks),
                required=tuple(entry.label for entry in plan.spec.audit if entry.required),
                about_one_model=plan.about_one_model,
                training=tuple(label for label, attack in plan.attacks.items() if getattr(attack, "trains", False)),
                rules=RULES,
                versions=plan.versions(),
                stages=stages,
            )
            return finish(self.root, manifest)

    def _remove_results(self) -> set[str]:
        """Remove the results of an earlier run; returns the paths of the files that its stages wrote."""
        try:
            stages = read_manifest(self.root).stages
        except ExpungeError:
            stages = ()
        for path in (self.root / name for name in (MANIFEST, *RESULTS)):
            with _storage_errors(path):
                path.unlink(missing_ok=True)
        for name in ("examples", "diagnosis"):
            # The spec of this run may not ask for examples any more; they may be personal data.
            shutil.rmtree(self.root / name, ignore_errors=True)
        return {file.path for stage in stages for file in stage.files.values()}

    def _remove(self, names: set[str]) -> None:
        """Remove files of an earlier run, if they are in a folder of the record and in no other place."""
        for path in (self.root / name for name in names if _PLAIN.fullmatch(name)):
            if path.is_file() and not path.parent.is_symlink():
                with _storage_errors(path):
                    path.unlink()

    def _keep(self, stage: Stage, plan: Plan, store: Store | MemoryStore) -> StageRecord:
        files: dict[str, FileRecord] = {}
        for source, folder in kind_of(stage.kind).written(plan).items():
            if folder is not None and folder not in plan.left_out:
                name = f"{folder}/{file_name(stage)}{Path(source).suffix}"
                store.keep(stage.key, source, self.root / name)
                files[folder] = FileRecord(name, store.digest(stage.key, source))
        return StageRecord(
            kind=stage.kind,
            model=stage.model,
            seed=stage.seed,
            attack=stage.attack,
            part=stage.part,
            key=stage.key,
            files=files,
            changed=store.facts(stage.key).get("changed"),
            kept=store.facts(stage.key).get("kept", ""),
            **spent(stage, plan, store),
        )


def _counts(plan: Plan, store: Store | MemoryStore) -> dict[str, int]:
    """The sizes of the sets of the first seed's problem."""
    original = next(stage for stage in plan.stages if stage.kind == "original")
    return set_sizes(Worker(plan, store).problem(original))


def set_sizes(problem: Problem) -> dict[str, int]:
    """Name of each set of examples -> its size."""
    return {name: len(getattr(problem, name)) for name in ("forget", "retain", "test", "holdout")}


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
    diagnosed = [DIAGNOSIS] if (root / DIAGNOSIS).is_file() else []
    names = [SPEC, ENVIRONMENT, "results.jsonl", "verdicts.json", *diagnosed]
    with _storage_errors(root):
        digests = {name: file_digest(root / name) for name in names}
    write_manifest(root, replace(manifest, files=digests))
    return table


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    """Inside, a failure of the file system becomes a message about this path."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path) from None


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
