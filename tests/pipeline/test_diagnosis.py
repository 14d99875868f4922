"""Diagnostics as stages of a run: on which originals, what is kept of them, and that nothing else changes by them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expunge.base.spec import Spec, parse
from expunge.diagnostics.memorization import Memorization
from expunge.evidence.estimate import Estimate, together
from expunge.pipeline.forecast import gradients
from expunge.pipeline.plan import Plan
from helpers import cli, contents, finished, run, stages_done, tiny, toml

DIAGNOSTIC = [{"name": "memorization", "nets": 2}]
FASHION = {"name": "fashion_mnist", "train": 200, "test": 50}


def diagnostics_of(spec: Spec) -> list[int | None]:
    return [stage.seed for stage in Plan(spec).stages if stage.kind == "diagnostic"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("probed") / "runs"
    table = tiny(data=FASHION, forget={"name": "hard_examples", "count": 20}, diagnostic=[{"name": "memorization"}])
    return out, json.loads(finished(run(table, out, "--json")).out)


def test_every_original_is_probed_where_that_is_cheap(tmp_path: Path) -> None:
    cheap = parse(tiny(data=FASHION, forget={"name": "hard_examples", "count": 20}, diagnostic=DIAGNOSTIC), tmp_path)
    assert diagnostics_of(cheap) == [0, 1]
    # `digits` ships no C-scores: nets are trained for them, once.
    assert diagnostics_of(parse(tiny(diagnostic=DIAGNOSTIC), tmp_path)) == [0]


def test_one_model_of_the_users_is_probed_once(tmp_path: Path, ran: tuple[Path, dict[str, Any]]) -> None:
    weights = ran[0] / "tiny" / "models" / "original-s0.safetensors"
    model = {**tiny()["model"], "weights": str(weights)}
    table = tiny(data=FASHION, model=model, forget={"name": "hard_examples", "count": 20}, diagnostic=DIAGNOSTIC)
    assert diagnostics_of(parse(table, tmp_path)) == [0]


def test_no_other_stage_knows_of_diagnostics(tmp_path: Path) -> None:
    bare, probed = (parse(tiny(gallery=True, **more), tmp_path) for more in ({}, {"diagnostic": DIAGNOSTIC}))
    keys = [{stage.key for stage in Plan(spec).stages if stage.kind != "diagnostic"} for spec in (bare, probed)]
    assert keys[0] == keys[1]
    # A label is no part of what is computed, a setting is.
    named, other = (replace(probed, diagnostic=(entry,)) for entry in (
        replace(probed.diagnostic[0], label="mine"), replace(probed.diagnostic[0], settings={"nets": 3})))  # fmt: skip
    found = [next(s.key for s in Plan(spec).stages if s.kind == "diagnostic") for spec in (probed, named, other)]
    assert found[0] == found[1] != found[2]


def test_what_is_over_seeds_follows_from_the_seeds(ran: tuple[Path, dict[str, Any]]) -> None:
    [found] = ran[1]["diagnosis"]
    assert (found["diagnostic"], found["name"]) == ("memorization", "memorization")
    whats = list(dict.fromkeys(row["what"] for row in found["rows"]))
    assert len(whats) == 6 and len(found["rows"]) == 6 * 3
    for what in whats:
        *seeds, over = (row for row in found["rows"] if row["what"] == what)
        assert [row["seed"] for row in seeds] == [0, 1] and over["seed"] is None
        assert over["value"] == pytest.approx(np.mean([row["value"] for row in seeds]))
        assert over["low"] <= np.mean([row["low"] for row in seeds]) + 1e-12
    said = {row["what"]: row["value"] for row in found["rows"] if row["seed"] is None}
    knows, general, expected = list(said.values())[:3]
    assert expected == pytest.approx(knows - general)
    assert f"{100 * expected:.1f} points" in found["sentence"]
    assert {row["predicts"] for row in found["rows"]} == {"original", "reference", "range", None}


def test_the_record_holds_it_and_verify_guards_it(ran: tuple[Path, dict[str, Any]]) -> None:
    out, done = ran
    folder = out / "tiny"
    assert json.loads((folder / "diagnosis.json").read_text()) == done["diagnosis"]
    finished(cli("verify", folder))
    for name in ("diagnosis.json", "diagnosis/s1-memorization.json"):
        path = folder / name
        held = path.read_bytes()
        path.unlink()
        path.write_bytes(held.replace(b"0.", b"1.", 1))
        result = cli("verify", folder)
        assert result.code == 4 and name in result.message()
        path.write_bytes(held)
    finished(cli("verify", folder))


def test_the_page_shows_it(ran: tuple[Path, dict[str, Any]]) -> None:
    page = (ran[0] / "tiny" / "report.html").read_text()
    [found] = ran[1]["diagnosis"]
    assert found["sentence"] in page and "range: original minus retrained" in page


def test_a_diagnostic_comes_and_goes_without_anything_else(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    bare = json.loads(finished(run(tiny(), out, "--json")).out)
    before, stages = contents(out / "tiny"), stages_done(out)
    assert "diagnosis" not in bare and not any("diagnosis" in name for name in before)
    probed = json.loads(finished(run(tiny(diagnostic=DIAGNOSTIC), out, "--json")).out)
    [added] = stages_done(out) - stages
    assert json.loads((out / "cache" / added / "stage.json").read_text())["stage"].endswith(
        "diagnostic original memorization"
    )
    assert {key: probed[key] for key in bare} == bare and probed["diagnosis"]
    assert {"diagnosis.json", "diagnosis/s0-memorization.json"} <= contents(out / "tiny").keys()
    finished(run(tiny(), out))
    assert contents(out / "tiny") == before


def test_diagnostics_of_curvature_run_within_their_budget_and_say_something(tmp_path: Path) -> None:
    names = ["coherence", "stability_limit", "sharpness"]
    table = tiny(seeds=[0], method=[], attack=[], audit=[], diagnostic=[{"name": name} for name in names])
    (tmp_path / "spec.toml").write_text(toml(table))
    found = json.loads(finished(cli("diagnose", tmp_path / "spec.toml", "--out", tmp_path / "runs", "--json")).out)
    assert list(found["diagnostics"]) == names
    assert all(sentence.endswith(".") for sentence in found["sentences"].values())
    ends = [
        row[end]
        for diagnostic in found["diagnostics"].values()
        for row in diagnostic.values()
        for end in ("value", "low", "high")
    ]
    assert ends and sum(not math.isfinite(float(end)) for end in ends) <= 3  # the noise scale, where there is no signal
    plan = Plan(parse(table, tmp_path))
    expected = [gradients(plan, stage) for stage in plan.stages if stage.kind == "diagnostic"]
    assert expected == pytest.approx([2 * 120, 2 * 120, 1.4 * 120])


def test_over_seeds_no_interval_is_narrower_than_within_them() -> None:
    def one(value: float, half: float) -> Estimate:
        return Estimate(value, value - half, value + half, 50, "share", "reference")

    # Student's t with 2 degrees of freedom at 95 % is 2.91999; the error of the mean of 0.1, 0.2, 0.3 is 0.1 / sqrt(3).
    spread = together([one(0.1, 0.01), one(0.2, 0.01), one(0.3, 0.01)])
    assert spread.value == pytest.approx(0.2) and spread.n == 3
    assert spread.half_width == pytest.approx(2.91999 * 0.1 / math.sqrt(3), rel=1e-5)
    # The same in every seed: what the examples leave open stays open.
    same = together([one(0.2, 0.03), one(0.2, 0.05)])
    assert (same.low, same.high) == pytest.approx((0.16, 0.24))
    alone = one(0.2, 0.03)
    assert together([alone]) is alone
    lost = Estimate(0.2, math.nan, math.nan, 1, "", "higher")
    assert math.isnan(together([lost, lost]).low) is False
    assert together([lost, lost]).half_width == 0


@pytest.mark.parametrize(("low", "blind"), [(0.01, False), (-0.01, True)])
def test_a_range_that_may_be_nothing_is_said_to_be(low: float, blind: bool) -> None:
    values = {what: Estimate(0.5, 0.4, 0.6, 9, "share", "reference") for what in Memorization.predicts}
    *_, last = values
    values[last] = Estimate(0.05, low, 0.09, 9, "share", "reference")
    assert ("hardly any verdict" in Memorization().summary(values)) == blind
