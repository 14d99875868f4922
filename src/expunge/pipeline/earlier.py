"""An earlier run in the same folder: whether another run may use its folder, and what this would replace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from expunge.base.errors import ExpungeError, SpecError
from expunge.base.manifest import SPEC, read_environment, read_manifest
from expunge.base.record import canonical
from expunge.pipeline.input_files import without_places
from expunge.pipeline.plan import Plan

FIXED = (
    "data", "objective", "augmentation", "model", "train", "forget", "one_original", "references", "seeds", "threads",
    "device", "precision",
)  # fmt: skip
"""Settings that two runs in the same folder must share: otherwise one table could not hold the rows of both."""


def refuse_other(root: Path, plan: Plan) -> None:
    """Refuse a folder that belongs to another run. Nothing is written.

    Args:
        root: The run's folder; it need not exist.
        plan: The plan of the run that is about to start.

    Raises:
        SpecError: The folder holds a run of another spec.
    """
    path = root / SPEC
    if not path.is_file():
        return
    # Older records name input files in full.
    stored = without_places(_stored(path), plan.spec.folder)
    wanted = json.loads(canonical(plan.resolved()))
    # Older records name no device: those runs used the CPU. Without an objective it was inferred, as it is now.
    stored = {"device": "cpu", "precision": "float32", "objective": wanted.get("objective"), **stored}
    differing = [key for key in FIXED if stored.get(key) != wanted.get(key)]
    if differing:
        other = "other" if differing[0] in ("seeds", "threads") else "another"
        raise SpecError(
            f"it holds a run with {other} {differing[0]}: {_first_difference(stored, wanted, differing[0])}",
            where=str(root),
            allowed=f"the same {', '.join(FIXED)}; methods, attacks and audits may change",
            remedy="give the spec another name, or choose another folder for runs",
        )


def replaced(root: Path, plan: Plan) -> str | None:
    """What of a finished record this run will replace, in one line; `None` if it only adds to it, or there is none.

    Input files are compared by their contents: the same spec with other data replaces the record, too.
    """
    try:
        manifest = read_manifest(root)
        environment = read_environment(root, manifest)
    except ExpungeError:
        return None
    before = {(s.kind, s.model, s.seed, s.attack, s.part): s.key for s in manifest.stages}
    after = {(s.kind, s.model, s.seed, s.attack, s.part): s.key for s in plan.stages}
    other = [stage for stage, key in before.items() if after.get(stage, key) != key]
    if not other:
        return None
    inputs = environment.get("inputs")
    digests = plan.inputs.digests()
    places = [place for place in digests if isinstance(inputs, dict) and inputs.get(place, "") != digests[place]]
    reason = f"other contents of {' and '.join(places)}" if places else "other settings, code or versions"
    count = f"{len(other)} of its {len(before)} stages"
    return f"{root} holds a finished run. {count} had {reason}: this run replaces them when it has finished"


def _stored(path: Path) -> dict[str, Any]:
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        spec = None
    if not isinstance(spec, dict):
        remedy = "give the spec another name, or choose another folder for runs"
        raise SpecError("this is not the spec of a run", where=str(path), remedy=remedy)
    return spec


def _first_difference(stored: dict[str, Any], wanted: dict[str, Any], key: str) -> str:
    before, after = stored.get(key), wanted.get(key)
    if isinstance(before, dict) and isinstance(after, dict):
        inner = next(name for name in [*after, *before] if before.get(name) != after.get(name))
        return f"{key}.{inner} was {before.get(inner)!r}, is {after.get(inner)!r}"
    return f"{key} was {before!r}, is {after!r}"
