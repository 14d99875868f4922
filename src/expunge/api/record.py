"""The record of an audit made in a notebook: the same folder that `expunge run` writes, without models."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors

from expunge.base.record import file_digest, spelled, write_file
from expunge.core.case import Cost, Curve
from expunge.evidence.scores import Scores, dumps
from expunge.evidence.table import Table
from expunge.pipeline.folder import FORMAT, environment, finish

Place = tuple[str, int, str | None]
"""Model, number of the reference, attack."""


def write_record(
    root: Path,
    table: Table,
    curves: Mapping[tuple[str, int, str], Curve],
    facts: Mapping[str, Any],
    cost: Cost,
    versions: Mapping[str, Mapping[str, int]],
    examples: Mapping[str, Any] | None = None,
) -> None:
    """Write scores, curves, rows and verdicts.

    Args:
        root: The folder; made where it is not there.
        table: All scores.
        curves: By model, reference and attack.
        facts: What was run, in the place of a spec.
        cost: Of unlearning.
        versions: Of attacks and audits.
        examples: What the gallery shows; none where it was not asked for.

    Raises:
        RunError: It could not be written.
    """
    # What an earlier audit copied here does not stay where the examples are no longer asked for.
    shutil.rmtree(root / "examples", ignore_errors=True)
    write_file(root / "spec.json", json.dumps(spelled(facts), indent=1, default=str) + "\n")
    ran_on = {key: facts.get(key) for key in ("device", "precision")}
    write_file(root / "env.json", json.dumps({**environment(), **ran_on}, indent=1) + "\n")
    scores: dict[Place, list[Scores]] = defaultdict(list)
    for entry in table.measured:
        scores[entry.model, entry.seed, entry.attack].append(entry.scores)
    stages = [_entry(root, place, found, curves, cost) for place, found in scores.items()]
    if examples is not None:
        stages.append(_gallery(root, examples))
    fields = ("models", "seeds", "attacks", "required", "about_one_model")
    finish(
        root,
        {"format": FORMAT, **{name: getattr(table, name) for name in fields}, "versions": versions, "stages": stages},
    )


def _gallery(root: Path, examples: Mapping[str, Any]) -> dict[str, Any]:
    content = json.dumps(examples, ensure_ascii=False, indent=1).encode()
    files = {"examples": _write(root, "examples/s0.json", content)}
    place = {"kind": "gallery", "model": "", "seed": 0, "attack": None, "part": "gallery", "key": None}
    return place | {"gradients": 0, "seconds": 0.0, "files": files}


def _entry(
    root: Path, place: Place, scores: list[Scores], curves: Mapping[tuple[str, int, str], Curve], cost: Cost
) -> dict[str, Any]:
    model, index, attack = place
    name = "-".join(str(word) for word in (model, index, attack) if word is not None)
    files = {"scores": _write(root, f"scores/{name}.safetensors", dumps(scores))}
    if attack is not None:
        curve = curves[model, index, attack]
        tensors = {"steps": torch.from_numpy(curve.steps), "values": torch.from_numpy(curve.values)}
        files["curves"] = _write(root, f"curves/{name}.safetensors", save_tensors(tensors))
    unlearned = model not in ("original", "reference") and attack is None
    return {
        "kind": "unlearn" if unlearned else "attack" if attack else "audit",
        "model": model,
        "seed": index,
        "attack": attack,
        "part": attack or model,
        "key": None,
        "gradients": cost.gradients if unlearned else 0,
        "seconds": round(cost.seconds, 3) if unlearned else 0.0,
        "files": files,
    }


def _write(root: Path, name: str, content: bytes) -> dict[str, str]:
    write_file(root / name, content)
    return {"path": name, "sha256": file_digest(root / name)}
