"""Methods after other methods: where they start, what they are held against, what they cost and where that shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from expunge.base.seeds import derive
from expunge.base.spec import parse
from expunge.base.store import Store
from expunge.core import checkpoint
from expunge.methods.finetune import Finetune
from expunge.pipeline.plan import Plan
from expunge.pipeline.stage import WEIGHTS
from expunge.reporting.page import write_report
from helpers import Table, cli, contents, finished, run, snapshot, tiny, write_spec

FIRST: Table = {"name": "random_relabel", "epochs": 2}
SECOND: Table = {"name": "finetune", "label": "both", "epochs": 1, "after": "random_relabel"}
ALONE: Table = {"name": "finetune", "epochs": 1}


def spec(*methods: Table, **changes: Any) -> Table:
    return tiny(seeds=[0], method=list(methods), **{"audit": [{"name": "distance"}], **changes})


def plan_of(folder: Path, *methods: Table, **changes: Any) -> Plan:
    return Plan(parse(spec(*methods, **changes), folder=folder))


def keys(plan: Plan, model: str, kind: str = "unlearn") -> list[str]:
    return [stage.key for stage in plan.stages if stage.kind == kind and stage.model == model]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in which the second comes first in the spec."""
    out = tmp_path_factory.mktemp("after") / "runs"
    finished(run(spec(SECOND, FIRST, ALONE), out))
    return out


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "tiny" / "results.jsonl").read_text().splitlines()]


def made(out: Path) -> dict[str, dict[str, Any]]:
    stages = json.loads((out / "tiny" / "manifest.json").read_text())["stages"]
    return {stage["model"]: stage for stage in stages if stage["kind"] == "unlearn"}


def test_the_second_starts_from_the_models_of_the_first(runs: Path, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, SECOND, FIRST, ALONE)
    problem = plan.problem(0, {})
    recipe, models = plan.recipe(problem.data), runs / "tiny" / "models"
    start = checkpoint.load(recipe.build(0), models / "random_relabel-s0.safetensors").eval()
    seed = derive(0, "unlearn", "random_relabel", "finetune")
    by_hand = Finetune(epochs=1)(start, problem, recipe, seed).model.state_dict()
    found, alone = (load_file(models / f"{name}-s0.safetensors") for name in ("both", "finetune"))
    assert all(torch.equal(found[name], by_hand[name]) for name in by_hand)
    assert not all(torch.equal(found[name], alone[name]) for name in by_hand)


def test_distance_counts_from_the_original(runs: Path) -> None:
    original, both = (load_file(runs / "tiny" / "models" / f"{m}-s0.safetensors") for m in ("original", "both"))
    wanted = sum(float((original[name] - both[name]).double().square().sum()) for name in original) ** 0.5
    [row] = [
        r for r in rows(runs) if (r["model"], r["metric"], r["seed"]) == ("both", "l2_distance", 0) and not r["attack"]
    ]
    assert row["value"] == pytest.approx(wanted, rel=1e-5)


def test_results_are_in_the_order_of_the_spec(runs: Path) -> None:
    models = ["original", "reference", "both", "random_relabel", "finetune"]
    assert list(dict.fromkeys(row["model"] for row in rows(runs))) == models


def test_another_order_in_the_spec_gives_the_same_numbers(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    finished(run(spec(FIRST, ALONE, SECOND), out))
    kept = [{k: v for k, v in contents(o / "tiny").items() if k.startswith(("models", "scores"))} for o in (runs, out)]
    assert kept[0] == kept[1] and len(kept[0]) > 10


def test_the_cost_is_that_of_both(runs: Path) -> None:
    # 108 retained examples; each of four batches of at most 32 beside 12 of the forget set; and another pass.
    first, second = made(runs)["random_relabel"]["gradients"], made(runs)["finetune"]["gradients"]
    assert (first, second) == (2 * (108 + 12), 108)
    assert made(runs)["both"]["gradients"] == first + second
    seconds = [made(runs)[name]["seconds"] for name in ("random_relabel", "both")]
    facts = Store(runs / "cache").facts(made(runs)["both"]["key"])
    assert facts["gradients"] == second and seconds[1] == pytest.approx(seconds[0] + facts["seconds"])
    finished(cli("verify", runs / "tiny"))


def test_the_budget_is_that_of_the_second_alone(tmp_path: Path) -> None:
    first, second = FIRST | {"budget": 130}, SECOND | {"budget": 100, "batch_size": 50}
    finished(run(spec(first, second, attack=[]), tmp_path / "runs"))
    found = made(tmp_path / "runs")
    assert found["random_relabel"]["gradients"] == 120
    assert found["both"]["gradients"] == 120 + 100


def test_keys_follow_from_the_chain(tmp_path: Path) -> None:
    third = {"name": "finetune", "label": "third", "after": "both"}
    plan = plan_of(tmp_path, FIRST, SECOND, third, ALONE)
    changed = plan_of(tmp_path, FIRST | {"epochs": 3}, SECOND, third, ALONE)
    for model in ("random_relabel", "both", "third"):
        assert keys(plan, model) != keys(changed, model)
    last = plan_of(tmp_path, FIRST, SECOND, third | {"epochs": 3}, ALONE)
    assert [keys(plan, m) == keys(last, m) for m in ("random_relabel", "both", "third")] == [True, True, False]
    # Without chains the rest is what it was: originals, references, methods, attacks and audits.
    plain = {stage.key for stage in plan_of(tmp_path, FIRST, ALONE).stages}
    assert plain < {stage.key for stage in plan.stages}
    # A label is no part of a key.
    renamed = plan_of(tmp_path, FIRST | {"label": "x"}, SECOND | {"after": "x"})
    assert keys(renamed, "both") == keys(plan, "both")
    assert keys(plan, "both") != keys(plan, "finetune")


def test_shadows_are_chained_too(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, SECOND, FIRST, audit=[{"name": "u_lira", "shadows": 4}])
    by_key = {stage.key: stage for stage in plan.stages}
    shadows = [stage for stage in plan.stages if stage.kind == "shadow" and stage.model == "both"]
    before = [[by_key[key] for key in stage.needs] for stage in shadows]
    assert [[(s.kind, s.model, s.part) for s in found] for found in before] == [
        [("shadow", "random_relabel", str(i)), ("shadow", "original", str(i))] for i in range(2)
    ]
    seen: set[str] = set()
    for stage in plan.stages:
        assert set(stage.needs) <= seen
        seen.add(stage.key)
    out = tmp_path / "runs"
    finished(run(spec(SECOND, FIRST, attack=[], audit=[{"name": "u_lira", "shadows": 4}]), out))
    store, problem = Store(out / "cache"), plan.problem(0, {})
    start = checkpoint.load(plan.recipe(problem.data).build(0), store.path(before[0][0].key, WEIGHTS)).eval()
    seed = derive(derive(0, "shadow", "0"), "unlearn", "random_relabel", "finetune")
    by_hand = Finetune(epochs=1)(start, problem, None, seed).model.state_dict()
    found = load_file(store.path(shadows[0].key, WEIGHTS))
    assert all(torch.equal(found[name], by_hand[name]) for name in by_hand)


def test_a_method_after_itself_draws_anew(tmp_path: Path) -> None:
    noise = {"name": "weight_distortion", "sigma": 0.1, "epochs": 1, "budget": 1}
    twice = noise | {"label": "twice", "after": "weight_distortion"}
    finished(run(spec(noise, twice, attack=[]), tmp_path / "runs"))
    names = ("original", "weight_distortion", "twice")
    start, once, both = (load_file(tmp_path / "runs" / "tiny" / "models" / f"{n}-s0.safetensors") for n in names)
    name = max(start, key=lambda n: start[n].numel())
    first, second = once[name] - start[name], both[name] - once[name]
    # 1024 independent draws: a correlation of 0.03 by chance, of 1 where they are the same.
    assert abs(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]) < 0.15
    assert second.std() > 0.05


def test_unlearn_runs_what_leads_to_the_method_and_nothing_else(runs: Path, tmp_path: Path) -> None:
    saved, out = tmp_path / "done.safetensors", tmp_path / "runs"
    path = write_spec(tmp_path, spec(SECOND, FIRST, ALONE))
    done = json.loads(finished(cli("unlearn", path, "--method", "both", "--save", saved, "--out", out, "--json")).out)
    assert done["gradients"] == made(runs)["both"]["gradients"]
    found, wanted = load_file(saved), load_file(runs / "tiny" / "models" / "both-s0.safetensors")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    names = {json.loads(p.read_text())["stage"] for p in (out / "cache").glob("*/stage.json")}
    assert names == {"seed 0: original", "seed 0: unlearn random_relabel", "seed 0: unlearn both after random_relabel"}


def test_it_is_seen_wherever_the_spec_is(runs: Path, tmp_path: Path) -> None:
    table = spec(SECOND, FIRST, ALONE)
    assert Plan(parse(table, tmp_path)).resolved()["method"][0]["after"] == "random_relabel"
    planned = finished(cli("run", write_spec(tmp_path, table), "--out", tmp_path / "runs", "--dry-run", "--stages"))
    assert "unlearn both after random_relabel" in planned.out
    page = write_report(runs / "tiny").read_text(encoding="utf-8")
    assert "after = &#34;random_relabel&#34;" in page
    finished(run(spec({**SECOND, "after": "finetune"}, FIRST, ALONE), tmp_path / "other"))
    told = finished(cli("compare", runs / "tiny", tmp_path / "other" / "tiny", "--out", tmp_path / "c.html")).out
    assert 'method.both.after: "random_relabel" -> "finetune"' in told


def test_nothing_is_made_again(runs: Path) -> None:
    before = snapshot(runs / "cache")
    finished(run(spec(SECOND, FIRST, ALONE), runs))
    assert snapshot(runs / "cache") == before
