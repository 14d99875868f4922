"""U-LiRA on one model of the user's: shadows by the case's recipe, the numbers of a spec, and what is made once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file
from torch import Tensor, nn

import expunge
from expunge.api.audit import Result
from expunge.base.errors import MissingError, SpecError
from expunge.core.case import Case, Meter, Unlearned
from expunge.core.data import Data
from expunge.data.arrays import Arrays
from expunge.evidence.scores import load
from expunge.models.mlp import MLP
from expunge.pipeline.stage import WEIGHTS
from expunge.train.training import TrainedRecipe, Training
from helpers import finished, run, wrong_digits

FORGET, TRAIN, TEST = 40, 200, 100
MLP_TABLE, TRAINING = {"widths": [16]}, {"epochs": 30, "learning_rate": 0.01, "batch_size": 64}
U_LIRA = {"name": "u_lira", "shadows": 4}


class Counted:
    """A recipe that remembers on how many examples it trained."""

    def __init__(self, data: Data) -> None:
        self.inner, self.fits = TrainedRecipe(MLP(**MLP_TABLE), Training(**TRAINING), data), list[int]()  # type: ignore[arg-type]

    def build(self, seed: int) -> nn.Module:
        return self.inner.build(seed)

    def fit(self, module: nn.Module, data: Data, ids: Tensor, seed: int, meter: Meter | None = None) -> nn.Module:
        self.fits.append(len(ids))
        return self.inner.fit(module, data, ids, seed, meter)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, of which the first have wrong labels, and a network that has learned all of them."""
    path = tmp_path_factory.mktemp("shadows")
    wrong_digits(path, FORGET, TRAIN, TEST)
    data = Arrays(path=str(path / "own.npz"))()
    recipe = Counted(data)
    model = recipe.fit(recipe.build(7), data, data.train, 7)
    save_file(model.state_dict(), path / "mine.safetensors")
    return path


def case_of(folder: Path, *, lost: bool = False) -> tuple[Case, Counted]:
    data = Arrays(path=str(folder / "own.npz"))()
    recipe = Counted(data)
    torch.manual_seed(7)
    model = recipe.fit(recipe.build(7), data, data.train, 7)
    recipe.fits.clear()
    parts = {"forget": data.train[:FORGET], "retain": data.train[FORGET:], "test": data.test}
    pairs = {name: (data.inputs[ids], data.targets[ids]) for name, ids in parts.items()}
    return expunge.case(model, **pairs, recipe=None if lost else recipe), recipe


def test_the_numbers_are_those_of_a_spec(folder: Path) -> None:
    """Same data in the same order, same seed: the same shadows and so the same value, to the last bit."""
    case, _ = case_of(folder)
    done = expunge.unlearn(case, "retrain")
    result = expunge.audit(done, case, attacks=[], audits=[U_LIRA], references=1)
    table = {
        "name": "mine",
        "seeds": [0],
        "data": {"name": "arrays", "path": "own.npz"},
        "model": {"name": "mlp", **MLP_TABLE, "weights": "mine.safetensors"},
        "train": TRAINING,
        "forget": {"name": "indices", "path": "forget.txt"},
        "method": [{"name": "retrain"}],
        "audit": [U_LIRA],
    }
    finished(run(table, folder / "runs"))

    def values(model: str) -> tuple[list[float], list[float]]:
        theirs = load(folder / "runs" / "mine", f"scores/{model}-s0-u_lira.safetensors")
        ours = [m.scores for m in result.table.measured if (m.model, m.scores.metric) == (model, "u_lira_4")]
        return tuple(scores.values.tolist() for [scores] in (ours, theirs))  # type: ignore[return-value]

    for model in ("original", "retrain"):
        ours, theirs = values(model)
        assert ours == theirs
    assert len(set(ours)) > 2, "values that say nothing would agree whatever the shadows"
    # A reference has a seed of its own here: several of them belong to one seed.
    ours, theirs = values("reference")
    assert ours != theirs


def test_the_number_of_shadows_is_stated(folder: Path, tmp_path: Path) -> None:
    case, _ = case_of(folder)
    result = expunge.audit(expunge.unlearn(case, "finetune", epochs=1), case, attacks=[], audits=[U_LIRA], references=1)
    assert {row["metric"] for row in result.rows} >= {"u_lira_4"}
    [_, stated] = json.loads((result.save(tmp_path) / "spec.json").read_text())["audit"]
    assert stated == {"name": "u_lira", "shadows": 4, "after_attack": False}


def test_shadows_are_trained_once_and_the_method_once_per_setting(folder: Path) -> None:
    case, recipe = case_of(folder)
    first, second = (expunge.unlearn(case, "retrain") for _ in range(2))
    recipe.fits.clear()
    expunge.audit(first, case, attacks=[], audits=[U_LIRA], references=1)
    # One reference; two originals that saw all, two that never saw the forget set; the method, a retraining, on two.
    assert sorted(recipe.fits) == [TRAIN - FORGET] * 5 + [TRAIN] * 2
    expunge.audit(second, case, attacks=[], audits=[U_LIRA], references=1)
    assert len(recipe.fits) == 7
    expunge.audit(second, case, attacks=[], audits=[{"name": "u_lira", "shadows": 6}], references=1)
    assert len(recipe.fits) == 7 + 3
    expunge.audit(expunge.unlearn(case, "finetune", epochs=1), case, attacks=[], audits=[U_LIRA], references=1)
    assert len(recipe.fits) == 10


def audited(case: Case, done: Unlearned, attack: dict[str, Any] | None = None) -> Result:
    audits = [U_LIRA | {"after_attack": attack is not None}]
    return expunge.audit(done, case, attacks=[attack] if attack else [], audits=audits, references=1)


def shadows_of(result: Result, model: str, attack: str | None = None) -> dict[str, bytes]:
    """Weights of the shadows of a model by their stage."""
    stages = [s for s in result.plan.stages if s.kind == "shadow" and (s.model, s.attack) == (model, attack)]
    return {stage.key: result.store.read(stage.key, WEIGHTS) for stage in stages}


def test_another_setting_or_budget_is_another_method(folder: Path) -> None:
    case, _ = case_of(folder)

    def unlearned(**settings: Any) -> dict[str, bytes]:
        done = expunge.unlearn(case, "random_relabel", epochs=3, **settings)
        return shadows_of(audited(case, done), "random_relabel")

    found = [unlearned(learning_rate=1e-3), unlearned(learning_rate=1e-2), unlearned(learning_rate=1e-2, budget=100)]
    assert len({content for shadows in found for content in shadows.values()}) == 3 * 2
    assert len({key for shadows in found for key in shadows}) == 3 * 2
    assert unlearned(learning_rate=1e-2) == found[1]


def test_a_method_after_another_is_run_after_it_on_shadows_too(folder: Path) -> None:
    case, _ = case_of(folder)
    first = expunge.unlearn(case, "random_relabel", epochs=3)
    both = expunge.unlearn(case, "finetune", after=first, epochs=1, learning_rate=1e-30)
    # A second method that moves nothing leaves what the first one made.
    result = audited(case, both)
    found, expected = (shadows_of(result, done.method).values() for done in (both, first))
    for ours, theirs in zip(map(load_tensors, found), map(load_tensors, expected), strict=True):
        assert all(torch.allclose(ours[name], theirs[name], rtol=0, atol=1e-20) for name in theirs)


def test_after_an_attack_shadows_are_attacked_alike_and_once(folder: Path) -> None:
    case, recipe = case_of(folder)
    done = expunge.unlearn(case, "random_relabel", epochs=2)
    attack = {"name": "relearn", "epochs": 1}
    audits = [U_LIRA | {"after_attack": True}]
    for _ in range(2):
        result = expunge.audit(done, case, attacks=[attack], audits=audits, references=1)
        assert len(recipe.fits) == 5, "a reference and four shadows, once"
    found = {(m.model, m.attack) for m in result.table.measured if m.scores.metric == "u_lira_4"}
    assert found == {("original", None)} | {(m, a) for m in ("reference", "random_relabel") for a in (None, "relearn")}
    for model in ("original", "reference", "random_relabel"):
        before, after = (list(shadows_of(result, model, label).values()) for label in (None, "relearn"))
        assert len({*before, *after}) == 4


def test_what_is_missing_is_named_before_anything_is_trained(folder: Path) -> None:
    lost, _ = case_of(folder, lost=True)
    with pytest.raises(MissingError, match="no recipe to train shadow models with"):
        expunge.audit(expunge.unlearn(lost, "finetune", epochs=1), lost, attacks=[], audits=[U_LIRA])
    case, recipe = case_of(folder)
    file = expunge.unlearn(case, "checkpoint", path=str(folder / "mine.safetensors"))
    unknown = replace(expunge.unlearn(case, "finetune", epochs=1), part=None)
    for done in (file, unknown):
        with pytest.raises(MissingError, match="it is not known how the model was unlearned"):
            expunge.audit(done, case, attacks=[], audits=[U_LIRA])
    assert recipe.fits == []


def test_a_language_model_is_refused() -> None:
    tokens = torch.randint(5, (12, 4))
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    parts = {name: (tokens[i : i + 4], tokens[i : i + 4]) for i, name in enumerate(("forget", "retain", "test"))}
    case = expunge.case(model, **parts)
    with pytest.raises(SpecError, match="audit 'u_lira': needs classes"):
        expunge.audit(expunge.unlearn(case, "finetune", epochs=1), case, attacks=[], audits=[U_LIRA])
