"""Shadow models through the pipeline: U-LiRA's example, and what is made once and what again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expunge.base.spec import parse
from expunge.pipeline.plan import Plan
from helpers import cli, finished, run, snapshot, stages_done, tiny

ROOT = Path(__file__).resolve().parents[2]
AUDIT = [{"name": "u_lira", "shadows": 4}]
RELABEL, FINETUNE = {"name": "random_relabel", "epochs": 2}, {"name": "finetune", "epochs": 1}


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("u_lira")
    done = finished(cli("run", ROOT / "examples" / "u_lira.toml", "--out", out, "--workers", 1, "--json"))
    finished(cli("verify", out / "u_lira"))
    found: dict[str, Any] = json.loads(done.out)
    return found


def values(example: dict[str, Any], model: str) -> list[float]:
    rows = [row for row in example["rows"] if row["model"] == model and row["metric"] == "u_lira_8"]
    return [row["value"] for row in rows if row["seed"] is not None]


def verdict_of(example: dict[str, Any], model: str) -> dict[str, Any]:
    found: dict[str, Any] = next(verdict for verdict in example["verdicts"] if verdict["model"] == model)
    return found


def test_the_original_is_called_a_member_and_the_retrained_is_not(example: dict[str, Any]) -> None:
    """Positive control and null: the attack's area under the curve is near 1, and 1/2 where there is nothing to see.

    Examples move together within a model, so that a single null value strays by more than 80 examples suggest.
    """
    assert min(values(example, "original")) > 0.95
    for model in ("reference", "retrain"):
        assert abs(sum(values(example, model)) / 3 - 0.5) < 0.15


def test_retraining_is_not_accused(example: dict[str, Any]) -> None:
    verdict = verdict_of(example, "retrain")
    assert verdict["verdict"] in ("erased", "inconclusive")


def test_fine_tuning_is_seen_through(example: dict[str, Any]) -> None:
    verdict = verdict_of(example, "finetune")
    assert verdict["verdict"] == "incomplete"
    assert any(told.startswith("u_lira_8 on forget") for told in verdict["reasons"])


def test_another_method_uses_the_shadows_that_are_there(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    finished(run(tiny(seeds=[0], attack=[], audit=AUDIT, method=[RELABEL]), out))
    before, done = snapshot(out / "cache"), stages_done(out)
    finished(run(tiny(seeds=[0], attack=[], audit=AUDIT, method=[RELABEL, FINETUNE]), out))
    after = snapshot(out / "cache")
    assert {name: after[name] for name in before} == before
    # Of the new method: itself, itself on two shadows, and two audits; no model is trained again.
    assert len(stages_done(out) - done) == 1 + 2 + 2
    assert not list((out / "tiny" / "models").glob("*shadow*"))


def test_more_shadows_are_added_to_those_that_are_there(tmp_path: Path) -> None:
    few, more = (plan_of(tmp_path, audit=[{"name": "u_lira", "shadows": n}]) for n in (4, 8))
    assert shadows_of(few) < shadows_of(more)
    # Two seeds, and per seed as many originals as references, and the method on each of the originals.
    assert [len(shadows_of(plan)) for plan in (few, more)] == [2 * 2 * 3, 2 * 4 * 3]
    assert not shadows_of(plan_of(tmp_path, audit=[{"name": "loss"}]))


def test_shadows_are_held_against_what_was_treated_alike(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, audit=AUDIT)
    made = {stage.key: stage for stage in plan.stages if stage.kind == "shadow"}
    for stage in plan.stages:
        if stage.kind != "audit" or stage.part != "u_lira":
            continue
        around = [(made[key].model, made[key].part, made[key].seed) for key in stage.needs if key in made]
        knew = "random_relabel" if stage.model == "random_relabel" else "original"
        assert around == [(model, part, stage.seed) for model in (knew, "reference") for part in ("0", "1")]
        assert stage.attack is None


def test_a_file_cannot_be_run_again_on_shadows(tmp_path: Path) -> None:
    """All shadows would hold the audited model's own weights, and any model would be called a member."""
    out = tmp_path / "runs"
    method = [{"name": "checkpoint", "path": "mine.safetensors", "label": "elsewhere"}]
    refused = run(tiny(audit=AUDIT, method=method), out)
    assert refused.code == 3 and "'elsewhere' only reads a file" in refused.message()
    assert not out.exists()


def test_a_plain_function_as_an_audit_asks_for_no_shadows(tmp_path: Path) -> None:
    (tmp_path / "my_audit.py").write_text("def nothing(model, case, seed):\n    return []\n")
    finished(run(tiny(seeds=[0], attack=[], audit=[{"name": "my_audit:nothing"}]), tmp_path / "runs"))


def test_attacked_shadows_are_stages_of_their_own(tmp_path: Path) -> None:
    plain, again = (plan_of(tmp_path, audit=[AUDIT[0] | {"after_attack": on}]) for on in (False, True))
    assert keys(plain) < keys(again), "what is there already is used"
    added = [stage for stage in again.stages if stage.key not in keys(plain)]
    # Per seed the attack on two originals, references and unlearned models, and the audit of two attacked models.
    assert [stage.kind for stage in added].count("shadow") == 2 * 3 * 2
    assert [stage.kind for stage in added].count("audit") == len(added) - 12 == 2 * 2
    made = {stage.key: stage for stage in again.stages if stage.kind == "shadow"}
    for stage in added:
        if stage.kind == "audit":
            knew = "random_relabel" if stage.model == "random_relabel" else "original"
            around = [(made[key].model, made[key].attack) for key in stage.needs if key in made]
            assert around == [(knew, "relearn")] * 2 + [("reference", "relearn")] * 2


def test_what_relearning_wakes_is_told_from_retrained_models(tmp_path: Path) -> None:
    audit = {"name": "u_lira", "shadows": 8, "after_attack": True, "required": True}
    table = tiny(
        seeds=[0],
        data={"name": "digits"},
        model={"name": "mlp", "widths": [64]},
        train={"epochs": 30, "learning_rate": 0.01},
        forget={"name": "label_swap", "count": 100},
        method=[{"name": "random_relabel", "epochs": 2}],
        attack=[{"name": "relearn", "epochs": 2}],
        audit=[audit],
    )
    out = tmp_path / "runs"
    finished(run(table, out))
    rows = [json.loads(line) for line in (out / "tiny" / "results.jsonl").read_text().splitlines()]
    after = {row["model"]: row["value"] for row in rows if (row["metric"], row["attack"]) == ("u_lira_8", "relearn")}
    assert after["random_relabel"] > 0.9
    # One retrained model strays by more than its 80 examples suggest, as they move together.
    assert abs(after["reference"] - 0.5) < 0.25
    for path in (out / "tiny").rglob("*shadow*"):
        raise AssertionError(f"{path.name} is one of many models that only an audit asks")


def test_the_gallery_does_not_ask_shadows(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, gallery=True, audit=[AUDIT[0] | {"after_attack": True}])
    [gallery] = [stage for stage in plan.stages if stage.kind == "gallery"]
    assert not shadows_of(plan) & set(gallery.needs)


def test_a_small_convolutional_network_has_shadows_too(tmp_path: Path) -> None:
    table = tiny(
        seeds=[0],
        data={"name": "digits", "train": 400, "test": 100},
        model={"name": "cnn", "width": 8, "hidden": 32},
        train={"epochs": 20, "learning_rate": 0.01},
        forget={"name": "label_swap", "count": 40},
        method=[{"name": "finetune", "epochs": 1}],
        attack=[],
        audit=AUDIT,
    )
    out = tmp_path / "runs"
    finished(run(table, out))
    rows = [json.loads(line) for line in (out / "tiny" / "results.jsonl").read_text().splitlines()]
    value = {row["model"]: row["value"] for row in rows if row["metric"] == "u_lira_4"}
    assert value["original"] > 0.9, "labels known by heart give a member away"
    assert 0 < value["reference"] < 0.9


def keys(plan: Plan) -> set[str]:
    return {stage.key for stage in plan.stages}


def plan_of(folder: Path, **changes: Any) -> Plan:
    return Plan(parse(tiny(**changes), folder=folder))


def shadows_of(plan: Plan) -> set[str]:
    return {stage.key for stage in plan.stages if stage.kind == "shadow"}
