"""A claim about one model of the user's: safetensors and arrays that were made without this library."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from expunge.base.spec import parse
from expunge.pipeline.plan import Plan
from helpers import Table, cli, finished, run, snapshot, stages_done, wrong_digits

FORGET, TRAIN, TEST = 60, 400, 300
Row = dict[str, object]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits of which the first have wrong labels, and a network that has learned all of them by heart."""
    path = tmp_path_factory.mktemp("mine")
    x, y = wrong_digits(path, FORGET, TRAIN, TEST)

    torch.manual_seed(7)
    net, inputs, targets = network(), torch.from_numpy(x[:TRAIN]), torch.from_numpy(y[:TRAIN])
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), targets).backward()
        optimizer.step()
    assert (net(inputs).argmax(1) == targets).all(), "the network must know what is to be forgotten"
    save_file(net.state_dict(), path / "mine.safetensors")
    return path


def spec(**changes: object) -> Table:
    return {
        "name": "mine",
        "seeds": [0, 1, 2],
        "data": {"name": "arrays", "path": "own.npz"},
        "model": {"name": "mlp", "widths": [64], "weights": "mine.safetensors"},
        "train": {"epochs": 40, "learning_rate": 0.01},
        "forget": {"name": "indices", "path": "forget.txt"},
        "method": [{"name": "finetune", "epochs": 1, "learning_rate": 1e-9}],
        "attack": [{"name": "relearn", "epochs": 1}],
    } | changes


@pytest.fixture(scope="module")
def out(folder: Path) -> Path:
    path = folder / "runs"
    finished(run(spec(), path))
    return path


def rows(out: Path) -> list[Row]:
    return [json.loads(line) for line in (out / "mine" / "results.jsonl").read_text().splitlines()]


def test_a_model_that_was_never_unlearned_is_incomplete(out: Path) -> None:
    [verdict] = json.loads((out / "mine" / "verdicts.json").read_text())
    assert verdict["model"] == "finetune" and verdict["verdict"] == "incomplete"
    assert "incomplete" in verdict["flags"] and "erased" not in verdict["flags"]


def test_the_original_is_the_users_model(out: Path, folder: Path) -> None:
    stored = load_file(out / "mine" / "models" / "original-s0.safetensors")
    given = load_file(folder / "mine.safetensors")
    assert stored.keys() == given.keys()
    assert all(torch.equal(stored[name], given[name]) for name in given)
    [known] = [r["value"] for r in rows(out) if (r["model"], r["seed"], r["split"]) == ("original", 0, "forget")]
    assert known == 1.0


def test_one_original_one_unlearned_model_and_a_reference_a_seed(out: Path) -> None:
    seeds = {(row["model"], row["seed"]) for row in rows(out) if row["attack"] is None and row["metric"] == "accuracy"}
    assert seeds == {("original", 0), ("finetune", 0), ("reference", 0), ("reference", 1), ("reference", 2)} | {
        (model, None) for model in ("original", "finetune", "reference")
    }
    attacked = Counter(
        row["model"]
        for row in rows(out)
        if row["attack"] == "relearn"
        and row["seed"] is not None
        and row["metric"] == "accuracy"
        and row["split"] == "forget"
    )
    assert attacked == {"finetune": 1, "reference": 3}
    models = {path.name for path in (out / "mine" / "models").iterdir() if "relearn" not in path.name}
    assert models == {
        f"{m}.safetensors" for m in ("original-s0", "finetune-s0", *(f"reference-s{i}" for i in range(3)))
    }


def test_gaps_are_to_the_mean_of_all_references(out: Path) -> None:
    found = {
        (r["model"], r["seed"]): r
        for r in rows(out)
        if r["attack"] is None and r["metric"] == "accuracy" and r["split"] == "forget"
    }
    references = [float(found["reference", seed]["value"]) for seed in range(3)]  # type: ignore[arg-type]
    assert max(references) < 0.5
    for model in ("original", "finetune"):
        expected = float(found[model, 0]["value"]) - np.mean(references)  # type: ignore[arg-type]
        assert found[model, 0]["gap"] == pytest.approx(expected, rel=1e-12)
    assert found["reference", 0]["gap"] is None


def test_verify_agrees(out: Path) -> None:
    assert finished(cli("verify", out / "mine")).out


def test_other_weights_are_another_original_with_the_same_references(out: Path, folder: Path) -> None:
    torch.manual_seed(8)
    save_file(network().state_dict(), folder / "other.safetensors")
    before = stages_done(out)
    model = {"name": "mlp", "widths": [64], "weights": "other.safetensors"}
    finished(run(spec(name="other", model=model), out))
    new = [json.loads((out / "cache" / key / "stage.json").read_text())["stage"] for key in stages_done(out) - before]
    assert "seed 0: original" in new
    assert not [name for name in new if name.endswith("reference")]


def test_the_same_folder_refuses_other_weights(out: Path) -> None:
    before = snapshot(out)
    result = run(spec(model={"name": "mlp", "widths": [64], "weights": "another.safetensors"}), out)
    assert result.code == 2 and "model.weights" in result.message()
    assert snapshot(out) == before


def test_references_of_a_random_task_belong_to_the_one_problem(folder: Path) -> None:
    """Methods are judged on a problem a seed, one model on the first seed's alone: not one reference may be shared."""
    forget = {"name": "label_swap", "count": 40}

    def references(seeds: list[int], weights: dict[str, str]) -> dict[int | None, str]:
        table = spec(forget=forget, seeds=seeds, model={"name": "mlp", "widths": [64]} | weights)
        return {s.seed: s.key for s in Plan(parse(table, folder)).stages if s.kind == "reference"}

    mine = {"weights": "mine.safetensors"}
    one, methods = references([0, 1, 2], mine), references([0, 1, 2], {})
    assert one[0] == methods[0] and one[1] != methods[1] and one[2] != methods[2]
    later = references([1, 2, 0], mine)
    assert all(one[seed] != later[seed] for seed in (0, 1, 2))


def test_references_of_one_model_share_its_shadows(folder: Path) -> None:
    plan = Plan(parse(spec(audit=[{"name": "u_lira", "shadows": 4}]), folder=folder))
    made = {stage.key for stage in plan.stages if stage.kind == "shadow"}
    asked = [made.intersection(s.needs) for s in plan.stages if (s.part, s.model) == ("u_lira", "reference")]
    assert len(made) == 2 * 3 and len(asked) == 3
    assert all(keys == asked[0] and len(keys) == 4 for keys in asked)


def test_one_trained_original_is_compared_with_a_reference_of_each_seed(folder: Path) -> None:
    """Only one original is trained; it is the one that a run with an original of each seed trains first."""
    out = folder / "trained"
    alone = spec(name="alone", one_original=True, model={"name": "mlp", "widths": [64]}, attack=[], seeds=[3, 1, 2])
    finished(run(alone, out))
    manifest = json.loads((out / "alone" / "manifest.json").read_text())
    count = Counter((stage["kind"], stage["model"]) for stage in manifest["stages"] if stage["kind"] != "audit")
    assert count == {("original", "original"): 1, ("reference", "reference"): 3, ("unlearn", "finetune"): 1}
    assert manifest["about_one_model"] and json.loads((out / "alone" / "spec.json").read_text())["one_original"]
    each = Plan(parse({**alone, "name": "each", "one_original": False}, folder))
    keys = {stage.seed: stage.key for stage in each.stages if stage.kind == "original"}
    assert [s["key"] for s in manifest["stages"] if s["kind"] == "original"] == [keys[3]]
    assert "one_original" in run({**alone, "one_original": False}, out).message()
