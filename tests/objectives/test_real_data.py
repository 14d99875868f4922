"""Every objective through a spec and through a notebook, on real data: fine-tuning is accused, retraining is not."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _real import FORGET, MODELS, REAL, Real, spec_of
from torch import nn

import expunge
from expunge.core.data import Data
from helpers import finished, run

ACCUSED = {"incomplete", "dormant"}
RANGES = {
    "multilabel": "accuracy",
    "regression": "r_squared",
    "segmentation": "accuracy",
    "reconstruction": "r_squared",
}


@pytest.mark.parametrize("name", REAL)
def test_a_spec_judges_it(name: str, tmp_path: Path) -> None:
    found = json.loads(finished(run(spec_of(REAL[name](), tmp_path), tmp_path / "runs", "--json")).out)
    verdicts = {verdict["model"]: verdict for verdict in found["verdicts"]}
    assert verdicts["finetune"]["verdict"] in ACCUSED
    assert not ACCUSED & set(verdicts["retrain"]["flags"]) and "damaged" not in verdicts["retrain"]["flags"]
    audits = [a for a in verdicts["finetune"]["audits"] if (a["metric"], a["split"]) == (RANGES[name], "forget")]
    assert len(audits) == 2 and all(audit["range_low"] > 0 for audit in audits)
    utility = [a for a in verdicts["retrain"]["audits"] if a["role"] == "utility"]
    by_label = {f"worst_label_{RANGES[name]}"} if RANGES[name] == "accuracy" else set()
    assert {a["metric"] for a in utility} == {RANGES[name]} | by_label


@pytest.mark.parametrize("name", REAL)
def test_a_notebook_judges_it(name: str) -> None:
    real = REAL[name]()
    case = notebook_case(real)
    for method, settings, accused in (("finetune", {"epochs": 2}, True), ("retrain", {}, False)):
        verdict = expunge.audit(expunge.unlearn(case, method, **settings), case, audits=["loss"], references=12).verdict
        assert bool(ACCUSED & set(verdict.flags)) == accused, (method, verdict.flags, verdict.reasons)


def test_a_training_function_of_ones_own_in_a_spec(tmp_path: Path) -> None:
    table = spec_of(REAL["regression"](), tmp_path, train={"name": "my_models:fit", "epochs": 200})
    found = json.loads(finished(run(table, tmp_path / "runs", "--json")).out)
    verdicts = {verdict["model"]: verdict["flags"] for verdict in found["verdicts"]}
    assert ACCUSED & set(verdicts["finetune"]) and not ACCUSED & set(verdicts["retrain"])
    again = run(table, tmp_path / "runs")
    assert "already done" in again.err
    (tmp_path / "my_models.py").write_text(MODELS.replace("0.005", "0.006"))
    assert "already done" not in run(table, tmp_path / "other").err
    wrong = run(table | {"train": {"name": "my_models:fit", "epoch": 3}}, tmp_path / "runs")
    assert wrong.code == 2 and "train" in wrong.message() and "'epochs'" in wrong.message()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"objective": {"name": "multilabels"}}, ("objective.name", "did you mean 'multilabel'?")),
        ({"objective": {"name": "multilabel", "counts": 3}}, ("objective", "'counts'")),
        ({"objective": {"name": "classification"}}, ("targets have shape", "one class per example")),
        ({"audit": [{"name": "u_lira"}]}, ("audit 'u_lira'", "classes", "Multilabel")),
        ({"method": [{"name": "symmetry"}]}, ("method 'symmetry'", "classes")),
    ],
)
def test_what_does_not_fit_the_objective_is_refused(
    change: dict[str, Any], said: tuple[str, ...], tmp_path: Path
) -> None:
    refused = run(spec_of(REAL["multilabel"](), tmp_path, **change), tmp_path / "runs")
    assert refused.code in (2, 3) and all(word in refused.message() for word in said), refused.message()


def test_targets_that_can_mean_several_things_ask_for_an_objective(tmp_path: Path) -> None:
    table = spec_of(REAL["multilabel"](), tmp_path)
    del table["objective"]
    refused = run(table, tmp_path / "runs")
    assert refused.code == 2 and "[objective]" in refused.message()


def notebook_case(real: Real) -> Any:
    module = _module()
    x, y = torch.from_numpy(real.x), torch.from_numpy(real.y)
    named = real.objective or {"name": "regression"}
    objective = expunge.objective(named["name"], **{key: value for key, value in named.items() if key != "name"})
    makers = {"my_models:pixels": module.pixels, "my_models:autoencoder": module.autoencoder}
    data = Data(x, y, torch.arange(real.train), torch.arange(real.train, len(x)), objective=objective)
    hidden = real.model.get("widths", [64])[0]

    def build() -> nn.Module:
        maker = makers.get(real.model["name"])
        outputs = data.objective.outputs
        return (
            maker(data)
            if maker
            else nn.Sequential(nn.Linear(x.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, outputs))
        )

    def train(model: nn.Module, dataset: Any) -> None:
        rows = [dataset[i] for i in range(len(dataset))]
        inputs, targets = torch.stack([a for a, _ in rows]), torch.stack([b for _, b in rows])
        pool = Data(
            inputs, targets, torch.arange(len(rows)), torch.arange(len(rows)), data.labels, objective=data.objective
        )
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(400):
            optimizer.zero_grad()
            pool.objective.loss(model, pool.batch(pool.train)).backward()
            optimizer.step()

    torch.manual_seed(0)
    model = build()
    train(model, torch.utils.data.TensorDataset(x[: real.train], y[: real.train]))
    parts = {"forget": slice(0, FORGET), "retain": slice(FORGET, real.train), "test": slice(real.train, len(x))}
    sets = {part: (x[rows], y[rows]) for part, rows in parts.items()}
    return expunge.case(model, recipe=expunge.recipe(build, train), objective=objective, **sets)


def _module() -> Any:
    spec = importlib.util.spec_from_loader("my_models", loader=None)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    exec(MODELS, module.__dict__)
    return module


def test_the_data_are_what_they_say() -> None:
    assert all(len(made().x) == len(made().y) > made().train > FORGET for made in REAL.values())
    assert np.isin(REAL["multilabel"]().y, (0, 1)).all()
