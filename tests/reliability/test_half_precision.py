"""Steps of training count: weights in half precision are widened with a word, or refused before they are trained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import expunge
from expunge.attacks.relearn import Relearn
from expunge.base.errors import SpecError
from expunge.core.case import Case
from expunge.core.data import Data
from expunge.core.modules import widened
from expunge.core.problem import Problem
from expunge.methods.finetune import Finetune
from expunge.methods.weight_distortion import WeightDistortion
from expunge.train.training import TrainedRecipe, Training

HALF: dict[str, Callable[[nn.Module], nn.Module]] = {
    "bfloat16": lambda m: m.bfloat16(),
    "float16": lambda m: m.half(),
    "only the head": lambda m: _head(m),
    "all but the norm": lambda m: _but_norm(m),
}


def _head(model: nn.Module) -> nn.Module:
    model.get_submodule("3").bfloat16()
    return model


def _but_norm(model: nn.Module) -> nn.Module:
    model.bfloat16().get_submodule("1").float()
    return model


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 3))


def vectors(seed: int, count: int) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)), torch.arange(count) % 3


SETS: dict[str, Any] = {"forget": vectors(0, 12), "retain": vectors(1, 40), "test": vectors(2, 30)}


def problem() -> Problem:
    inputs, targets = (torch.cat([part[i] for part in SETS.values()]) for i in (0, 1))
    ids = torch.arange(82)
    return Problem(Data(inputs, targets, ids[:52], ids[52:]), ids[:12], ids[12:52], ids[52:])


class Through(nn.Module):
    """Calls a model whose layers may differ in type, which a plain chain does not allow."""

    def __init__(self, chain: nn.Module) -> None:
        super().__init__()
        self.chain = chain

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.chain.children():
            own = next(layer.parameters(), x)
            x = layer(x.to(own.dtype))
        return x


@pytest.mark.parametrize("name", HALF)
def test_a_case_trains_weights_in_single_precision_and_says_so(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = Through(HALF[name](net()))
    before = copy.deepcopy(given.state_dict())
    case = expunge.case(given, **SETS)
    assert "float32 copy" in capsys.readouterr().err
    done = expunge.unlearn(case, "finetune", epochs=2, learning_rate=1e-5)
    same = expunge.unlearn(
        expunge.case(widened(copy.deepcopy(given)), **SETS), "finetune", epochs=2, learning_rate=1e-5
    )
    for (key, found), wanted in zip(done.model.state_dict().items(), same.model.state_dict().values(), strict=True):
        assert found.dtype == torch.float32 and torch.equal(found, wanted), key
    moved = [
        float((a.float() - b.float()).abs().max())
        for a, b in zip(before.values(), done.model.state_dict().values(), strict=False)
    ]
    # Two steps of Adam: each weight moves by about the learning rate in each.
    assert all(1e-6 < m < 1e-4 for m in moved), moved
    assert all(
        torch.equal(before[key], tensor) and before[key].dtype == tensor.dtype
        for key, tensor in given.state_dict().items()
    )


def test_wider_weights_and_ties_stay(capsys: pytest.CaptureFixture[str]) -> None:
    for model in (net(), net().double()):
        assert expunge.case(model, **SETS).original is model
    assert "float32 copy" not in capsys.readouterr().err
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).bfloat16()
    tied[1].weight = tied[0].weight
    wide = widened(tied)
    assert wide[1].weight is wide[0].weight and wide[0].weight.dtype == torch.float32


def trained(model: nn.Module, dataset: Any) -> None:
    """A user's training that reads its data and moves a weight."""
    assert len(list(dataset))
    with torch.no_grad():
        model.get_parameter("3.weight").add_(0.5)


def trained_half(model: nn.Module, dataset: Any) -> None:
    """A user's training that ends in half precision."""
    trained(model, dataset)
    model.bfloat16()


@pytest.mark.parametrize(("build", "train"), [(lambda: net().bfloat16(), trained), (net, trained_half)])
def test_references_are_in_single_precision_and_can_be_attacked(
    build: Callable[[], nn.Module], train: Callable[..., None]
) -> None:
    case = expunge.case(net(), **SETS, recipe=expunge.recipe(build, train))
    assert {p.dtype for p in case.reference.parameters()} == {torch.float32}
    assert {p.dtype for p in case.recipe.build(0).parameters()} == {torch.float32}  # type: ignore[union-attr]
    Relearn(epochs=1)(case.reference, case, 0)


def half_in_spec() -> None:
    TrainedRecipe(lambda data: net().half(), Training(), problem().data).build(0)


DIRECT: dict[str, Callable[[], object]] = {
    "a method": lambda: Finetune(epochs=1)(net().bfloat16(), problem(), None, 0),
    "a method of noise": lambda: WeightDistortion(epochs=1)(net().half(), problem(), None, 0),
    "an attack": lambda: Relearn(epochs=1)(net().bfloat16(), Case(0, problem(), net()), 0),
    "the training of a spec": lambda: Training(epochs=1).fit(net().bfloat16(), problem().data, problem().retain, 0),
    "the model of a spec": half_in_spec,
}


@pytest.mark.parametrize("name", DIRECT)
def test_without_a_case_weights_in_half_precision_are_refused(name: str) -> None:
    with pytest.raises(SpecError, match=r"0.weight is torch.b?float16, .* round away; .*model.float\(\)"):
        DIRECT[name]()
