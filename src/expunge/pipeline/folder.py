"""A run's folder: its spec, environment, scores, models, rows, verdicts and, last of all, the manifest."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from expunge.base.errors import SpecError
from expunge.base.record import (
    Store,
    canonical,
    file_digest,
    link_or_copy,
    rows_to_text,
    spelled,
    storage_error,
    sweep_files,
    write_file,
)
from expunge.evidence.table import Table, read_table, verdicts_text
from expunge.pipeline.diagnosis import FILE as DIAGNOSIS
from expunge.pipeline.diagnosis import diagnosis
from expunge.pipeline.plan import Plan, Stage
from expunge.pipeline.stages import CURVE, ESTIMATES, EXAMPLES, SCORES, WEIGHTS

FORMAT = 1
SPEC = "spec.json"
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
        sweep_files(self.root)
        write_file(self.root / SPEC, json.dumps(spelled(resolved), indent=1) + "\n")
        ran_on = {key: resolved.get(key) for key in ("device", "precision")}
        write_file(self.root / "env.json", json.dumps({**environment(), **ran_on}, indent=1) + "\n")

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

    def write(self, plan: Plan, store: Store) -> Table:
        """Put the finished run's scores, models, rows and verdicts into the folder, the manifest last."""
        # Examples that an earlier run into this folder showed must not outlive the wish to show them.
        shutil.rmtree(self.root / "examples", ignore_errors=True)
        self._keep_diagnosis(diagnosis(plan, store))
        entries = [self._keep(stage, plan, store) for stage in plan.stages]
        index = {
            "format": FORMAT,
            "models": ["original", "reference", *plan.methods],
            "seeds": list(plan.spec.seeds),
            "attacks": list(plan.attacks),
            "required": [e.label for e in plan.spec.audit if e.required],
            "about_one_model": plan.about_one_model,
            "versions": plan.versions(),
            "stages": entries,
        }
        return finish(self.root, index)

    def _keep_diagnosis(self, found: list[dict[str, Any]]) -> None:
        """Write what the diagnostics said, or remove what those of an earlier run into this folder did."""
        shutil.rmtree(self.root / "diagnosis", ignore_errors=True)
        (self.root / DIAGNOSIS).unlink(missing_ok=True)
        if found:
            write_file(self.root / DIAGNOSIS, json.dumps(spelled(found), indent=1, allow_nan=False) + "\n")

    def _keep(self, stage: Stage, plan: Plan, store: Store) -> dict[str, Any]:
        cost = spent(stage, plan, store)
        entry: dict[str, Any] = {
            "kind": stage.kind,
            "model": stage.model,
            "seed": stage.seed,
            "attack": stage.attack,
            "part": stage.part,
            "key": stage.key,
            **cost,
            "files": {},
        }
        # Shadows are many models that only an audit asks: they stay in the cache.
        kept = (
            (SCORES, "scores"),
            (CURVE, "curves"),
            (WEIGHTS, "models"),
            (EXAMPLES, "examples"),
            (ESTIMATES, "diagnosis"),
        )
        for source, folder in kept if stage.kind != "shadow" else ():
            path = store.path(stage.key, source)
            if path.is_file():
                name = f"{folder}/{file_name(stage)}{path.suffix}"
                entry["files"][folder] = {"path": name, "sha256": store.digest(stage.key, source)}
                link_or_copy(path, self.root / name)
        return entry


def spent(stage: Stage, plan: Plan, store: Store) -> dict[str, Any]:
    """Per-example gradients and seconds that a stage took; of a method with those of the methods that it goes after.

    The gradients are none where one of these methods was run elsewhere.
    """
    before = {s.key: s.needs for s in plan.stages if s.kind == "unlearn"} if stage.kind == "unlearn" else {}
    keys = [stage.key]
    while first := [key for key in before.get(keys[-1], ()) if key in before]:
        keys += first
    facts = [store.facts(key) for key in keys]
    seconds = round(sum(fact["seconds"] for fact in facts), 3)
    labels = [entry.label for entry in plan.spec.chain(stage.model)] if stage.kind == "unlearn" else []
    priced = all(getattr(plan.methods[label], "priced", True) for label in labels)
    return {"gradients": sum(fact["gradients"] for fact in facts) if priced else None, "seconds": seconds}


def finish(root: Path, index: dict[str, Any]) -> Table:
    """Judge what lies in the folder and write rows, verdicts and, last of all, the manifest.

    Args:
        root: A folder that already holds every file that the index names.
        index: The manifest but for the digests of rows and verdicts.

    Returns:
        The table that the score files hold.
    """
    table = read_table(root, index)
    write_file(root / "results.jsonl", rows_to_text(table.rows()))
    write_file(root / "verdicts.json", verdicts_text(table))
    names = ("results.jsonl", "verdicts.json", DIAGNOSIS)
    digests = {name: file_digest(root / name) for name in names if (root / name).is_file()}
    write_file(root / "manifest.json", json.dumps({**index, "results": digests}, indent=1) + "\n")
    return table


def file_name(stage: Stage) -> str:
    """A readable name that is unique within the run."""
    if stage.kind == "diagnostic":
        return f"s{stage.seed}-{stage.part}"
    part = {"audit": stage.part, "shadow": f"shadow-{stage.part}"}.get(stage.kind)
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
