"""The notebook path on a model, data and training loop of the user's own."""

from __future__ import annotations

import copy
import importlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import expunge
from expunge.attacks.relearn import Relearn
from expunge.base import registry
from expunge.base.errors import MissingError, RunError, SpecError
from expunge.base.manifest import read_manifest
from expunge.base.record import rows_to_text
from expunge.base.seeds import derive
from expunge.core.modules import state_digest
from expunge.methods.finetune import Finetune
from expunge.reporting.page import write_report
from expunge.reporting.verify import verify


def build() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))


def train(model: nn.Module, dataset: Dataset[tuple[Tensor, Tensor]]) -> None:
    """A training script that knows nothing of expunge."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(80):
        for x, y in DataLoader(dataset, batch_size=64, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()


class Setting:
    """Digits with 40 wrong labels, learned by heart."""

    def __init__(self) -> None:
        bunch = load_digits()
        x, y = torch.tensor(bunch.images / 16).float(), torch.tensor(bunch.target)
        wrong = y.clone()
        wrong[:40] = (wrong[:40] + 1 + torch.arange(40) % 9) % 10
        self.forget = TensorDataset(x[:40], wrong[:40])
        self.retain = TensorDataset(x[40:440], y[40:440])
        self.test = TensorDataset(x[440:1200], y[440:1200])
        self.holdout = TensorDataset(x[1200:1300], (y[1200:1300] + 1) % 10)
        torch.manual_seed(0)
        self.model = build()
        train(self.model, torch.utils.data.ConcatDataset([self.forget, self.retain]))


@pytest.fixture(scope="module")
def own() -> Setting:
    return Setting()


def test_four_lines(own: Setting, tmp_path: Path) -> None:
    case = expunge.case(
        own.model, forget=own.forget, retain=own.retain, test=own.test, recipe=expunge.recipe(build, train)
    )
    done = expunge.unlearn(case, "random_relabel", epochs=5, learning_rate=1e-3)
    result = expunge.audit(done, case)
    page = expunge.report(result, tmp_path / "report.html")

    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert result.verdict.claim == "model"
    assert {row["model"] for row in result.rows} == {"original", "reference", "random_relabel"}
    assert sum(row["model"] == "reference" and row["seed"] is not None for row in result.rows) > 0


@pytest.mark.parametrize(("method", "kept"), [("cf_k", {"cf_k": "1"}), ("finetune", {})])
def test_a_record_says_which_layers_a_method_kept(
    own: Setting, tmp_path: Path, method: str, kept: dict[str, str]
) -> None:
    case = expunge.case(own.model, forget=own.forget, retain=own.retain, test=own.test, holdout=own.holdout)
    done = expunge.unlearn(case, method, epochs=1, **({"k": 1} if method == "cf_k" else {}))
    result = expunge.audit(done, case, attacks=[], audits=[])
    stages = read_manifest(result.save(tmp_path / "run")).stages
    assert result.table.kept == kept == {stage.model: stage.kept for stage in stages if stage.kept}


def test_forget_examples_are_shown_only_where_asked(own: Setting, tmp_path: Path) -> None:
    case = expunge.case(own.model, forget=own.forget, retain=own.retain, test=own.test, holdout=own.holdout)
    done = expunge.unlearn(case, "finetune", epochs=1)
    plain, shown = (expunge.audit(done, case, audits=[], gallery=wanted) for wanted in (False, True))
    assert rows_to_text(plain.rows) == rows_to_text(shown.rows)
    plain.save(tmp_path / "run")
    assert not (tmp_path / "run" / "examples").exists()
    assert "data:image/png" not in expunge.report(plain, tmp_path / "plain.html").read_text(encoding="utf-8")
    assert "data:image/png" in expunge.report(shown, tmp_path / "shown.html").read_text(encoding="utf-8")
    found = json.loads((shown.save(tmp_path / "run") / "examples" / "s0.json").read_text())
    asked = [(entry["model"], entry["attack"]) for entry in found["models"]]
    assert asked == [("original", None), ("finetune", None), ("finetune", "relearn")]
    assert verify(tmp_path / "run")["digests"] > 0
    plain.save(tmp_path / "run")
    assert not (tmp_path / "run" / "examples").exists()


def test_a_model_that_was_never_unlearned_is_caught(own: Setting) -> None:
    case = expunge.case(
        own.model, forget=own.forget, retain=own.retain, test=own.test, recipe=expunge.recipe(build, train)
    )
    done = expunge.unlearn(case, "finetune", epochs=1, learning_rate=1e-9)
    assert expunge.audit(done, case, attacks=[]).verdict.verdict == "incomplete"


def test_without_a_recipe_it_accuses_or_says_nothing(own: Setting) -> None:
    case = expunge.case(own.model, forget=own.forget, retain=own.retain, test=own.test, holdout=own.holdout)
    with pytest.raises(MissingError, match="recipe"):
        expunge.unlearn(case, "retrain")
    done = expunge.unlearn(case, "finetune", epochs=1, learning_rate=1e-9)
    result = expunge.audit(done, case)
    assert result.verdict.claim == "no reference"
    assert result.verdict.verdict in ("incomplete", "inconclusive")
    assert all(row["gap"] is None for row in result.rows)


def test_the_record_of_a_notebook_can_be_verified(own: Setting, tmp_path: Path) -> None:
    case = expunge.case(own.model, forget=own.forget, retain=own.retain, test=own.test, holdout=own.holdout)
    result = expunge.audit(expunge.unlearn(case, "finetune", epochs=1), case)
    assert verify(result.save(tmp_path / "run"))["verdicts"] == 1
    versions = json.loads((tmp_path / "run" / "manifest.json").read_text())["versions"]
    assert versions == {
        "method": {"finetune": 2},
        "attack": {"relearn": 2},
        "audit": {"performance": 3, "loss": 1, "distance": 1},
    }


def test_a_method_after_another_starts_from_its_model(own: Setting) -> None:
    case = expunge.case(own.model, forget=own.forget, retain=own.retain, test=own.test, holdout=own.holdout)
    first = expunge.unlearn(case, "random_relabel", epochs=2)
    before = state_digest(first.model)
    both = expunge.unlearn(case, "finetune", after=first, epochs=1, budget=150)
    seed = derive(case.seed, "unlearn", "random_relabel_finetune")
    by_hand = Finetune(epochs=1)(first.model, case.problem, None, seed, 150)
    assert state_digest(both.model) == state_digest(by_hand.model)
    assert state_digest(first.model) == before
    # 400 to retain; the forget set has 40, of which each of four batches takes all.
    assert first.cost.gradients == 2 * (400 + 4 * 40) and both.cost.gradients == first.cost.gradients + 128
    assert both.cost.seconds > first.cost.seconds and both.method == "random_relabel_finetune"
    result = expunge.audit(both, case, attacks=[])
    assert result.verdict.model == "random_relabel_finetune" and result.cost == both.cost


def test_what_is_no_result_cannot_be_started_from(own: Setting) -> None:
    case = expunge.case(own.model, forget=own.forget, retain=own.retain, test=own.test)
    with pytest.raises(SpecError, match=r"after: found 'scrub'.*what expunge.unlearn returned"):
        expunge.unlearn(case, "finetune", after="scrub")  # type: ignore[arg-type]


def test_references_are_trained_once(own: Setting) -> None:
    trainings = []

    def counted(model: nn.Module, dataset: Dataset[tuple[Tensor, Tensor]]) -> None:
        trainings.append(1)
        train(model, dataset)

    case = expunge.case(
        own.model, forget=own.forget, retain=own.retain, test=own.test, recipe=expunge.recipe(build, counted)
    )
    done = expunge.unlearn(case, "finetune", epochs=1)
    expunge.audit(done, case, attacks=[])
    expunge.audit(done, case, attacks=[])
    assert len(trainings) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forget": []}, "forget: it holds no examples"),
        ({"forget": 3}, "forget: found int"),
        ({"retain": [{"picture": 1, "y": 2}]}, "retain: item 0 has keys"),
        ({"test": (torch.rand(3, 5), torch.zeros(3).long())}, "inputs have shapes"),
        (
            dict.fromkeys(("forget", "retain", "test"), (torch.rand(3, 8, 8), torch.rand(3))),
            r"model\'s output has shape \[6, 10\]",
        ),
        ({"forget": (torch.rand(3, 8, 8) * torch.nan, torch.zeros(3).long())}, "not finite"),
        ({"forget": (torch.rand(3, 8, 8), torch.full((3,), 11))}, "label 11"),
    ],
)
def test_bad_data_is_named(own: Setting, change: dict[str, object], message: str) -> None:
    data = {"forget": own.forget, "retain": own.retain, "test": own.test} | change
    with pytest.raises(SpecError, match=message):
        expunge.case(own.model, **data)  # type: ignore[arg-type]


def test_what_an_attack_refuses_is_refused_before_references_are_trained(own: Setting) -> None:
    def never(model: nn.Module, dataset: Dataset[tuple[Tensor, Tensor]]) -> None:
        raise AssertionError("a reference was trained")

    case = expunge.case(
        own.model, forget=own.forget, retain=own.retain, test=own.test, recipe=expunge.recipe(build, never)
    )
    done = expunge.unlearn(case, "finetune", epochs=1)
    with pytest.raises(MissingError, match="batch norm"):
        expunge.audit(done, case, attacks=["recalibrate"])
    with pytest.raises(SpecError, match=r"attack\.k"):
        expunge.audit(done, case, attacks=[{"name": "relearn", "k": 10_000}])


def test_looking_first(own: Setting) -> None:
    case = expunge.case(own.model, forget=own.forget, retain=own.retain, test=own.test)
    before = state_digest(own.model)
    seen = expunge.diagnose(case)
    assert state_digest(own.model) == before
    assert {"hardness", "sharpness", "coherence", "recommendation"} <= seen.estimates.keys() == seen.summary.keys()
    # C-scores take networks of their own, which nobody asked to train.
    assert "name it" in seen.left_out["memorization"] and "memorization, left out" in str(seen)
    assert "neggrad_plus" in str(seen)
    named = expunge.diagnose(case, [{"name": "hardness", "ascent_weight": 0.5, "label": "half"}])
    assert named.estimates.keys() == {"half"} and "alpha = 0.5" in named.summary["half"]
    assert repr(named.estimates) == repr(
        expunge.diagnose(case, [{"name": "hardness", "ascent_weight": 0.5, "label": "half"}]).estimates
    )
    with pytest.raises(MissingError, match="diagnostic 'memorization'"):
        expunge.diagnose(case, ["memorization"])
    with pytest.raises(SpecError, match="did you mean 'hardness'"):
        expunge.diagnose(case, ["hardnes"])


class Shifted(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.add_(1)


def test_a_model_that_cannot_be_differentiated_is_said_by_its_layer(own: Setting) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Sigmoid(), Shifted(), nn.Linear(8, 10))
    case = expunge.case(model, forget=own.forget, retain=own.retain, test=own.test)
    seen = expunge.diagnose(case)
    for diagnostic in ("coherence", "hardness", "low_curvature", "recommendation", "sharpness", "stability_limit"):
        assert seen.left_out[diagnostic].startswith("original (Sequential).3 (Shifted): a tensor"), diagnostic
    with pytest.raises(RunError, match=r"^diagnostic 'hardness'.original \(Sequential\)\.3 \(Shifted\): "):
        expunge.diagnose(case, ["hardness"])


def test_the_place_of_an_error_is_said_once(own: Setting) -> None:
    class Frozen(nn.Sequential):
        """Nothing to be trained."""

    model = Frozen(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(False)
    case = expunge.case(model, forget=own.forget, retain=own.retain, test=own.test)
    seen = expunge.diagnose(case)
    for diagnostic in ("coherence", "hardness", "recommendation", "sharpness", "stability_limit"):
        assert seen.left_out[diagnostic].startswith("original (Frozen): no parameter takes a gradient"), diagnostic


def test_the_record_holds_each_method_with_its_settings(own: Setting, tmp_path: Path) -> None:
    case = expunge.case(own.model, forget=own.forget, retain=own.retain, test=own.test, holdout=own.holdout)
    first = expunge.unlearn(case, "random_relabel", epochs=2, learning_rate=1e-3)
    both = expunge.unlearn(case, "finetune", after=first, epochs=1, budget=150)
    folder = expunge.audit(both, case, attacks=[], audits=[]).save(tmp_path / "run")
    spec = json.loads((folder / "spec.json").read_text())
    assert spec["case_seed"] == case.seed and spec["objective"]["name"] == "classification"
    one, two = spec["method"]
    assert (one["name"], one["epochs"], one["learning_rate"]) == ("random_relabel", 2, 1e-3)
    assert "after" not in one and "budget" not in one
    assert (two["name"], two["label"], two["epochs"]) == ("finetune", "random_relabel_finetune", 1)
    assert (two["after"], two["budget"]) == ("random_relabel", 150)
    manifest = read_manifest(folder)
    # The first method alone is neither audited nor shown; its cost is part of the chain's.
    assert manifest.models == ("original", "random_relabel_finetune")
    spent = {stage.model: stage.gradients for stage in manifest.stages if stage.kind == "unlearn"}
    assert spent == {"random_relabel": first.cost.gradients, "random_relabel_finetune": both.cost.gradients}
    assert not (folder / "models").exists() and verify(folder)["verdicts"] == 1
    assert "random_relabel_finetune" in write_report(folder).read_text(encoding="utf-8")


def test_a_model_that_was_changed_by_hand_is_measured_anew(own: Setting) -> None:
    case = expunge.case(own.model, forget=own.forget, retain=own.retain, test=own.test, holdout=own.holdout)
    done = expunge.unlearn(case, "finetune", epochs=1)
    other = copy.deepcopy(done.model)
    torch.nn.init.zeros_(other[-1].weight)
    values = [
        {(row["metric"], row["split"]): row["value"] for row in result.rows if row["model"] == "finetune"}
        for result in (expunge.audit(d, case, attacks=[]) for d in (done, replace(done, model=other), done))
    ]
    assert values[0] == values[2] != values[1]
    assert values[1]["accuracy", "test"] < 0.3 < values[0]["accuracy", "test"]


def test_the_same_attack_under_two_labels_draws_twice_as_seeds_depend_on_labels(own: Setting) -> None:
    case = expunge.case(own.model, forget=own.forget, retain=own.retain, test=own.test, holdout=own.holdout)
    done = expunge.unlearn(case, "random_relabel", epochs=2)
    tables = [{"name": "relearn", "epochs": 1, "label": label} for label in ("a", "b")]
    result = expunge.audit(done, case, attacks=tables, audits=[])
    for label, table in zip("ab", tables, strict=True):
        by_hand = Relearn(epochs=1)(done.model, case, derive(case.seed, "attack", table["label"], 0))
        curve = result.curves["random_relabel", 0, label]
        assert (curve.values == by_hand.curve.values).all() and (curve.ids == by_hand.curve.ids).all()


RECIPE = """
from pathlib import Path
from torch import nn
import test_notebook

def build():
    return test_notebook.build()

def train(model, dataset):
    with (Path(__file__).parent / "trainings").open("a") as file:
        file.write("once ")
    test_notebook.train(model, dataset)
"""


def test_a_folder_keeps_what_was_computed_for_another_session(
    own: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_recipe.py").write_text(RECIPE)
    monkeypatch.syspath_prepend(tmp_path)
    my_recipe = importlib.import_module("my_recipe")

    def audited(recipe: Any, folder: Path | None) -> str:
        """As in a new session: another case, which remembers nothing."""
        case = expunge.case(own.model, forget=own.forget, retain=own.retain, test=own.test, recipe=recipe)
        done = expunge.unlearn(case, "finetune", epochs=1)
        attacks = [{"name": "relearn", "epochs": 1}]
        return rows_to_text(expunge.audit(done, case, attacks=attacks, folder=folder).rows)

    named = expunge.recipe(my_recipe.build, my_recipe.train)
    in_memory = audited(named, None)
    assert (tmp_path / "trainings").read_text().split() == ["once"] * 3
    assert audited(named, tmp_path / "kept") == in_memory
    assert audited(named, tmp_path / "kept") == in_memory
    assert (tmp_path / "trainings").read_text().split() == ["once"] * 6
    assert capsys.readouterr().err == ""
    # A function that cannot be imported has no address that could be trusted in another session.
    closures = expunge.recipe(lambda: build(), my_recipe.train)
    assert audited(closures, tmp_path / "other") == in_memory
    assert "outputs stay in memory" in capsys.readouterr().err and not (tmp_path / "other").exists()
    sys.modules.pop("my_recipe")


WHO_TRAINS = """
import os
from pathlib import Path
import test_notebook

def build():
    return test_notebook.build()

def train(model, dataset):
    (Path(__file__).parent / f"trained-by-{os.getpid()}").touch()
    test_notebook.train(model, dataset)
"""


def test_workers_give_the_same_numbers_where_the_case_can_be_handed_over(
    own: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "their_recipe.py").write_text(WHO_TRAINS)
    monkeypatch.syspath_prepend(tmp_path)
    recipe = expunge.recipe(*(registry.load("method", f"their_recipe:{name}") for name in ("build", "train")))
    model = copy.deepcopy(own.model)
    model[1].requires_grad_(False)

    def audited(forget: Any, retain: Any, test: Any, **where: Any) -> str:
        case = expunge.case(model, forget=forget, retain=retain, test=test, recipe=recipe)
        first = expunge.unlearn(case, "random_relabel", epochs=1)
        both = expunge.unlearn(case, "finetune", after=first, epochs=1)
        audits = ["loss", {"name": "u_lira", "shadows": 4}]
        attacks = [{"name": "relearn", "epochs": 1}]
        return rows_to_text(expunge.audit(both, case, attacks=attacks, audits=audits, gallery=True, **where).rows)

    tensors = own.forget, own.retain, own.test
    alone = audited(*tensors)
    here = {f"trained-by-{os.getpid()}"}
    assert {path.name for path in tmp_path.glob("trained-by-*")} == here
    assert audited(*tensors, folder=tmp_path / "kept", workers=2) == alone
    assert {path.name for path in tmp_path.glob("trained-by-*")} > here
    assert "in this process" not in capsys.readouterr().err
    assert audited(*tensors, workers=2) == alone
    assert "all stages run in this process: several workers need folder=" in capsys.readouterr().err
    audited(*([(x, int(y)) for x, y in dataset] for dataset in tensors), folder=tmp_path / "numbers", workers=2)
    assert "all stages run in this process: the items of the data are not pairs" in capsys.readouterr().err
    sys.modules.pop("their_recipe")
