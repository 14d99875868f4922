"""Attacks that may destroy what any model knows are run on the original, too: the control."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expunge.base.spec import parse
from expunge.pipeline.plan import Plan
from helpers import Table, cli, finished, run, tiny

EDITS: dict[str, Table] = {
    "quantise": {"name": "quantise", "bits": 4},
    "coarse": {"name": "quantise", "label": "coarse", "bits": 2, "group": 0},
    "prune": {"name": "prune", "share": 0.9},
    "quantise_all": {"name": "quantise", "label": "quantise_all", "bits": 16},
}


def attacked(table: Table, folder: Path) -> tuple[set[str], set[str]]:
    """The models that are attacked, and those that are audited after an attack."""
    stages = Plan(parse(table, folder)).stages
    audited = {stage.model for stage in stages if stage.kind == "audit" and stage.attack is not None}
    return {stage.model for stage in stages if stage.kind == "attack"}, audited


@pytest.mark.parametrize("name", EDITS)
def test_the_original_is_attacked_where_the_attack_is_no_training(tmp_path: Path, name: str) -> None:
    models = {"original", "reference", "random_relabel"}
    assert attacked(tiny(attack=[EDITS[name]]), tmp_path) == (models, models)


def test_an_attack_that_trains_has_no_control(tmp_path: Path) -> None:
    models = {"reference", "random_relabel"}
    assert attacked(tiny(), tmp_path) == (models, models)


def test_the_record_holds_what_the_control_knows(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    finished(run(tiny(attack=[{"name": "quantise", "bits": 2, "group": 0}], gallery=True), runs))
    rows = [json.loads(line) for line in (runs / "tiny" / "results.jsonl").read_text().splitlines()]
    control = [r for r in rows if (r["model"], r["attack"], r["metric"]) == ("original", "quantise", "accuracy")]
    assert {row["split"] for row in control} >= {"forget", "retain"}
    assert "verdicts" in finished(cli("verify", runs / "tiny")).out
