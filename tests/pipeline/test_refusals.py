"""What cannot work is refused before anything is trained; what can only be seen in the end leaves all stages kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers import cli, finished, run, stages_done, tiny, write_spec

NORMED = {"name": "cnn", "norm": "batch"}
RECALIBRATE = [{"name": "recalibrate"}]


@pytest.mark.parametrize("arguments", [("run", "--workers", 1), ("run", "--dry-run")])
def test_recalibrating_a_model_without_batch_norm_is_refused_in_planning(
    tmp_path: Path, arguments: tuple[object, ...]
) -> None:
    verb, *options = arguments
    spec = write_spec(tmp_path, tiny(attack=RECALIBRATE))
    result = cli(verb, spec, "--out", tmp_path / "runs", *options)
    assert result.code == 3
    assert "no batch norm with running statistics" in result.message()
    assert not (tmp_path / "runs").exists()


def test_with_batch_norm_it_is_planned(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, tiny(attack=RECALIBRATE, model=NORMED))
    assert "recalibrate" in finished(cli("run", spec, "--out", tmp_path / "runs", "--dry-run", "--stages")).out


@pytest.mark.parametrize(("name", "remedy"), [("u_lira", "after_attack = true"), ("path", "leave out required")])
def test_a_required_audit_that_no_attack_repeats_is_refused_in_planning(tmp_path: Path, name: str, remedy: str) -> None:
    table = tiny(audit=[{"name": name, "required": True}])
    refused = run(table, tmp_path / "runs")
    assert refused.code == 2 and f"audit '{name}': it is required, but not repeated" in refused.message()
    assert remedy in refused.message()
    assert not (tmp_path / "runs").exists()
    write_spec(tmp_path, table | {"attack": []})
    finished(cli("run", tmp_path / "spec.toml", "--out", tmp_path / "runs", "--dry-run"))


def test_a_layer_that_is_not_there_is_refused_in_planning(tmp_path: Path) -> None:
    refused = run(tiny(audit=[{"name": "probe", "layer": "fc9"}]), tmp_path / "runs")
    assert (
        refused.code == 2 and "audit 'probe'" in refused.message() and not refused.out and "'fc9'" in refused.message()
    )
    assert not (tmp_path / "runs").exists()


def test_two_audits_of_one_metric_are_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    table = tiny(seeds=[0], attack=[], audit=[{"name": "loss"}, {"name": "loss", "label": "again", "retain": 50}])
    result = run(table, tmp_path / "runs")
    assert result.code == 2 and "of original, seed 0, was measured twice" in result.message()
    assert not (tmp_path / "runs" / "tiny" / "manifest.json").exists()
    done = stages_done(tmp_path / "runs")
    finished(run(table | {"audit": [{"name": "loss"}]}, tmp_path / "runs"))
    # It is refused before the methods start, as soon as originals and references are measured.
    assert stages_done(tmp_path / "runs") > done


PARTS = """
import copy, time
from pathlib import Path
from expunge.base.errors import RunError
from expunge.core.case import Cost, Unlearned

HERE = Path(__file__).parent


def wait_for(name):
    until = time.monotonic() + 60
    while not (HERE / name).exists():
        assert time.monotonic() < until
        time.sleep(0.01)


def fails(model, problem, recipe, seed, budget):
    wait_for("started")
    (HERE / "failed").touch()
    raise RunError("there was nothing to be done")


def slow(model, problem, recipe, seed, budget):
    (HERE / "started").touch()
    wait_for("failed")
    time.sleep(1)
    return Unlearned(copy.deepcopy(model), "slow", Cost(7, 0.0))
"""


def test_a_stage_that_runs_while_another_fails_is_kept(tmp_path: Path) -> None:
    (tmp_path / "beside_failing.py").write_text(PARTS)
    methods = [{"name": f"beside_failing:{name}"} for name in ("fails", "slow")]
    spec, out = write_spec(tmp_path, tiny(seeds=[0], attack=[], audit=[], method=methods)), tmp_path / "runs"
    result = cli("run", spec, "--out", out, "--workers", 2)
    assert result.code == 4
    assert "seed 0: unlearn beside_failing.fails: there was nothing to be done" in result.message()
    finished_stages = [path.read_text() for path in (out / "cache").glob("*/stage.json")]
    assert any("unlearn beside_failing.slow" in text for text in finished_stages)
    assert "unlearn beside_failing.slow" in (out / "tiny" / "events.jsonl").read_text()
    # Both workers were busy until the failure, and nothing was begun after it.
    assert not any("audit beside_failing" in text for text in finished_stages)
