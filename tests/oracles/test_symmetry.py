"""Other weights, the same function: permuting and rescaling hidden units changes no output, and training no order."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
import torch
from _toy import tokens
from torch import Tensor, nn

import expunge
from expunge.audits.distance import l2
from expunge.base import registry
from expunge.base.errors import MissingError, SpecError
from expunge.base.references import bibtex
from expunge.core.chain import joints
from expunge.core.data import Data
from expunge.core.problem import Problem
from expunge.data.digits import Digits
from expunge.methods.finetune import Finetune
from expunge.methods.symmetry import Symmetry
from expunge.models.cnn import CNN
from expunge.models.gpt import GPT
from expunge.models.mlp import MLP
from expunge.models.resnet9 import ResNet9
from expunge.models.vit import ViT

IMAGES = Digits(train=40, test=20)()
PROBLEM = Problem(IMAGES, torch.arange(6), torch.arange(6, 40), IMAGES.test)

# Sums of the same numbers in another order: a few roundings of numbers of order one, in either precision.
TOLERANCE = {torch.float64: {"rtol": 0, "atol": 1e-10}, torch.float32: {"rtol": 0, "atol": 1e-5}}


def pooled() -> nn.Sequential:
    """Pooling and a flattened map of 2 x 3 positions, after a nested block; no norm."""
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 2, bias=False), nn.LeakyReLU())
    return nn.Sequential(
        body, nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten(), nn.Linear(36, 9), nn.Tanh(), nn.Linear(9, 10)
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: MLP(widths=[12, 9, 7], dropout=0.3)(IMAGES),
    "cnn with group norm": lambda: CNN(width=16, hidden=11)(IMAGES),
    "cnn with batch norm": lambda: CNN(width=5, hidden=11, norm="batch")(IMAGES),
    "cnn without norm": lambda: CNN(width=5, hidden=11, norm="none")(IMAGES),
    "pooled": pooled,
}


def lively(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A model no entry of which is what it was set to: biases, norms and running statistics differ by unit."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
        with torch.no_grad():
            for tensor in model.state_dict().values():
                if tensor.is_floating_point():
                    tensor.add_(0.3 * torch.rand(tensor.shape))
    return model.double().eval()


def outputs(model: nn.Module) -> Tensor:
    place = next(model.parameters())
    with torch.no_grad():
        return model(IMAGES.inputs.to(place.dtype))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("settings", [{}, {"permute": False, "rescale": 1.5}, {"rescale": 1.5}], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_every_output_stays(name: str, settings: dict[str, float], dtype: torch.dtype) -> None:
    model = lively(MODELS[name]).to(dtype)
    method = Symmetry(**settings)
    for seed in range(3):
        done = method(model, PROBLEM, None, seed)
        scale = outputs(model).abs().max()
        torch.testing.assert_close(outputs(done.model) / scale, outputs(model) / scale, **TOLERANCE[dtype])
        assert l2(done.model, model) > 0.2 * l2(model, copy.deepcopy(model).apply(_erased))
        assert done.cost.gradients == 0


def _erased(module: nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        nn.init.zeros_(parameter)


@pytest.mark.parametrize("name", MODELS)
def test_every_hidden_layer_is_touched(name: str) -> None:
    model = lively(MODELS[name])
    done = Symmetry()(model, PROBLEM, None, 0).model
    for before, after in zip(joints(model), joints(done), strict=True):
        assert not torch.equal(before.incoming, after.incoming), before.name
    # Rows with their norms are the same ones in another order, once what reads the layer before is put aside.
    first, moved = joints(model)[0].incoming, joints(done)[0].incoming
    assert sorted(map(tuple, first.tolist())) == sorted(map(tuple, moved.tolist()))


def test_channels_stay_within_their_group() -> None:
    """16 channels in 8 groups: a pair stays a pair, and both pairs and what is in them change places."""
    model = lively(MODELS["cnn with group norm"])
    first = joints(model)[0]
    assert (first.units, first.groups) == (16, 8)
    rows = first.incoming.clone()
    moved = joints(Symmetry()(model, PROBLEM, None, 0).model)[0].incoming
    order = torch.tensor([int((rows == row).all(1).nonzero()) for row in moved])
    assert (order[::2] // 2 == order[1::2] // 2).all()
    assert not torch.equal(order[::2] // 2, torch.arange(8)) and (order[::2] > order[1::2]).any()


def test_factors_are_the_exponential_of_a_normal() -> None:
    """On one wide hidden layer: the logarithm of row over row has the standard deviation that was asked for."""
    model = lively(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 4000), nn.ReLU(), nn.Linear(4000, 10)))
    done = Symmetry(permute=False, rescale=0.7)(model, PROBLEM, None, 0).model
    logs = (done[1].bias / model[1].bias).detach().log()
    # Four standard errors of 4,000 draws.
    assert float(logs.std()) == pytest.approx(0.7, rel=4 / (2 * 4000) ** 0.5)
    assert abs(float(logs.mean())) < 4 * 0.7 / 4000**0.5


def test_a_norm_is_never_rescaled() -> None:
    model = lively(MODELS["cnn with batch norm"])
    done = Symmetry(permute=False, rescale=1.0)(model, PROBLEM, None, 0).model
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, dict(done.named_parameters())[name])]
    # Three normalised convolutions, then the hidden linear layer and what reads it.
    assert changed == ["10.weight", "10.bias", "12.weight"]


def test_a_frozen_layer_stays() -> None:
    model = lively(MODELS["mlp"])
    model[1].requires_grad_(False)
    done = Symmetry(rescale=1.0)(model, PROBLEM, None, 0).model
    assert torch.equal(done[1].weight, model[1].weight) and not torch.equal(done[7].weight, model[7].weight)
    torch.testing.assert_close(outputs(done), outputs(model), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_training_does_not_see_the_order_of_units(optimizer: str) -> None:
    """Fine-tuned, a permuted copy is the permuted fine-tuned model: its outputs are the same."""
    model, method = lively(MODELS["mlp"]), Finetune(epochs=3, batch_size=8, learning_rate=1e-2, optimizer=optimizer)
    model[3] = model[6] = model[9] = nn.Identity()  # dropout draws by place
    permuted = Symmetry()(model, PROBLEM, None, 0).model
    one, other = (method(start, PROBLEM, None, 1).model for start in (model, permuted))
    assert (outputs(one) - outputs(model)).abs().max() > 0.1
    # Roundings grow by training: 15 steps.
    torch.testing.assert_close(outputs(other), outputs(one), rtol=1e-8, atol=1e-8)


def test_it_changes_nothing_else() -> None:
    model = lively(MODELS["cnn with batch norm"])
    done = [Symmetry()(model, PROBLEM, None, seed).model for seed in (1, 1, 2)]
    assert l2(done[0], done[1]) == 0 and l2(done[0], done[2]) > 0
    for part in (done[0][-1].bias, model[-1].bias):
        assert torch.equal(part, model[-1].bias)


# --- What is no chain --------------------------------------------------------------------------------------------------


def with_one_tanh() -> nn.Sequential:
    tanh = nn.Tanh()
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), tanh, nn.Linear(8, 6), tanh, nn.Linear(6, 10))


def test_a_module_without_weights_may_be_used_twice() -> None:
    model = lively(with_one_tanh)
    assert [(joint.name, joint.homogeneous) for joint in joints(model)] == [("1", False), ("3", False)]
    torch.testing.assert_close(outputs(Symmetry(rescale=1.0)(model, PROBLEM, None, 0).model), outputs(model))


def tied() -> nn.Sequential:
    shared = nn.Linear(8, 8)
    return nn.Sequential(nn.Linear(64, 8), nn.ReLU(), shared, nn.ReLU(), shared)


class Skips(nn.Sequential):
    """Looks like a chain and is none."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


NO_CHAIN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "residual": (lambda: ResNet9(width=8)(_large()), "'res1.0' is|'res1' is a _Residual"),
    "transformer": (lambda: ViT(width=8, depth=1, heads=2)(IMAGES), "it is a _VisionTransformer"),
    "language model": (lambda: GPT(width=8, layers=1, heads=2)(tokens().data), "it is a GPT|it is a _"),
    "subclass": (lambda: Skips(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), "it is a Skips"),
    "one layer": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "fewer than two layers"),
    "tied": (tied, "'2.weight' and '4.weight' are the same tensor"),
    "softmax": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Softmax(1), nn.Linear(4, 4)), "'1' is a Softmax"),
    "not flattened": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Linear(6, 3)), "does not read the 2"),
    "flattened otherwise": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(2), nn.Linear(36, 3)),
        "a Flatten before '2'",
    ),
    "grouped first": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.Conv2d(4, 2, 3)),
        "'0' is a grouped convolution",
    ),
    "grouped later": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3, groups=2)),
        "'2' is a grouped convolution",
    ),
    "two groupings": (
        lambda: nn.Sequential(nn.Conv2d(2, 8, 3), nn.GroupNorm(2, 8), nn.GroupNorm(4, 8), nn.Conv2d(8, 2, 3)),
        "different groups",
    ),
    "norm of positions": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.BatchNorm1d(72), nn.Linear(72, 3)),
        "a norm before '3' has 72 channels",
    ),
}


def _large() -> Data:
    return Data(torch.zeros(8, 1, 32, 32), torch.arange(8) % 2, torch.arange(6), torch.arange(6, 8), ("a", "b"))


@pytest.mark.parametrize("name", NO_CHAIN)
def test_what_is_no_chain_is_refused(name: str) -> None:
    make, words = NO_CHAIN[name]
    with pytest.raises(MissingError, match=words) as caught:
        joints(make())
    assert "nn.Sequential of Linear, Conv2d" in str(caught.value)
    assert re.search(r"choose such a model \(mlp, cnn\)", str(caught.value))


def test_the_method_and_the_notebook_refuse_it_with_their_name() -> None:
    with pytest.raises(MissingError, match=r"^Symmetry: the model is not a plain chain"):
        Symmetry()(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), PROBLEM, None, 0)
    data = [(IMAGES.inputs[ids], IMAGES.targets[ids]) for ids in (PROBLEM.forget, PROBLEM.retain, PROBLEM.test)]
    case = expunge.case(
        ViT(width=8, depth=1, heads=2)(IMAGES), **dict(zip(("forget", "retain", "test"), data, strict=True))
    )
    with pytest.raises(MissingError, match=r"not a plain chain"):
        expunge.unlearn(case, "symmetry")


def test_nothing_to_change_is_refused() -> None:
    with pytest.raises(SpecError, match="nothing would change"):
        Symmetry(permute=False)
    with pytest.raises(SpecError, match="rescale"):
        Symmetry(rescale=-1.0)
    normed = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))
    with pytest.raises(MissingError, match="a norm behind it"):
        Symmetry(permute=False, rescale=1.0).check_model(normed)
    Symmetry().check_model(normed)
    with pytest.raises(MissingError, match="frozen"):
        Symmetry().check_model(normed.requires_grad_(False))


def test_is_documented() -> None:
    facts = registry.facts("method", "symmetry")
    assert facts["cost"] and facts["year"] == 2017 and "year = {2017}" in bibtex(Symmetry.cite, where="Symmetry")[0]
