"""Attacks that may destroy what any model knows are run on the original, too: the control."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expunge.base.spec import parse
from expunge.pipeline.plan import Plan
from helpers import Table, cli, finished, run, tiny

ATTACKS: dict[str, tuple[Table, bool]] = {
    "quantise": ({"name": "quantise", "bits": 4}, True),
    "coarse": ({"name": "quantise", "label": "coarse", "bits": 2, "group": 0}, True),
    "prune": ({"name": "prune", "share": 0.9}, True),
    "relearn": ({"name": "relearn", "epochs": 1}, False),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_the_original_is_attacked_where_the_attack_is_no_training(tmp_path: Path, name: str) -> None:
    attack, control = ATTACKS[name]
    plan = Plan(parse(tiny(attack=[attack]), tmp_path))
    attacked = {stage.model for stage in plan.stages if stage.kind == "attack"}
    audited = {stage.model for stage in plan.stages if stage.kind == "audit" and stage.attack == name}
    methods = {"reference", "random_relabel"}
    assert attacked == audited == (methods | {"original"} if control else methods)


def test_the_record_holds_what_the_control_knows(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    finished(run(tiny(attack=[{"name": "quantise", "bits": 2, "group": 0}], gallery=True), runs))
    rows = [json.loads(line) for line in (runs / "tiny" / "results.jsonl").read_text().splitlines()]
    control = [r for r in rows if (r["model"], r["attack"], r["metric"]) == ("original", "quantise", "accuracy")]
    assert {row["split"] for row in control} >= {"forget", "retain"}
    assert "verdicts" in finished(cli("verify", runs / "tiny")).out
