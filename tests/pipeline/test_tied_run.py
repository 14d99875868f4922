"""A run on a model with example-tied dropout: from the spec to weights, audits and attacks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file

from helpers import cli, finished, tiny, toml

TIED = {"name": "tied_dropout", "at": "2", "fixed": 0.5, "memory": 0.2}


def test_a_run_with_memory_from_end_to_end(tmp_path: Path) -> None:
    table = tiny(
        name="tied",
        seeds=[0],
        model={"name": "mlp", "widths": [16], "block": [TIED]},
        method=[{"name": "rem", "epochs": 2, "flushes": 3}, {"name": "npo", "epochs": 1}],
        audit=[{"name": "distance"}, {"name": "path"}],
    )
    (tmp_path / "tied.toml").write_text(toml(table))
    done = finished(cli("run", tmp_path / "tied.toml", "--out", tmp_path / "runs", "--workers", "1", "--json"))
    rows = json.loads(done.out)["rows"]
    models = {row["model"] for row in rows}
    assert {"original", "reference", "rem", "npo"} <= models
    healed = [row["value"] for row in rows if row["metric"] == "healed" and row["model"] == "rem"]
    assert healed and all(math.isfinite(value) for value in healed)

    files = tmp_path / "runs/tied/models"
    weights = {name: load_file(files / f"{name}-s0.safetensors") for name in ("original", "rem", "npo")}
    for name, zero in (("original", False), ("rem", True), ("npo", False)):
        assert bool((weights[name]["1.weight"][8:] == 0).all()) == zero
        assert bool((weights[name]["3.weight"][:, 8:] == 0).all()) == zero
    attacked = load_file(files / "rem-s0-relearn.safetensors")
    assert (attacked["1.weight"][8:] == 0).all()
    assert not torch.equal(attacked["1.weight"][:8], weights["rem"]["1.weight"][:8])
