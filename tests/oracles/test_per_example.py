"""Gradients of single examples from one pass over many, against one pass for each."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from _toy import EXACT, classes, gpt, gradient, linear, net, tokens
from torch import Tensor, nn

from expunge.core.case import Meter
from expunge.core.data import Batch, Data
from expunge.core.decisions import Decisions, decision_losses
from expunge.core.problem import Problem
from expunge.methods import _checked
from expunge.methods._gradients import mean_absolute_gradient, mean_squared_gradient
from expunge.models.cnn import CNN
from expunge.models.mlp import MLP
from expunge.numerics import per_example
from expunge.numerics.per_example import chain, chunk_size
from expunge.objectives.classification import Classification


def images() -> Problem:
    """70 noisy images of three classes, 40 of them to retain: more than one chunk."""
    inputs = torch.randn(70, 2, 9, 8, generator=torch.Generator().manual_seed(0)).double()
    data = Data(inputs, torch.arange(70) % 3, torch.arange(60), torch.arange(60, 70), ("a", "b", "c"))
    return Problem(data, torch.arange(20), torch.arange(20, 60), data.test)


def by_hand(model: nn.Module, problem: Problem, ids: Tensor, magnitude: Callable[[Tensor], Tensor]) -> Tensor:
    """One backward pass for each example, which is alone in its batch."""
    model, total = copy.deepcopy(model).eval(), []
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for i in ids:
        losses = decision_losses(problem.objective.decisions(model, problem.data.batch(i[None])))
        found = torch.autograd.grad(losses.sum(), trained, allow_unused=True, materialize_grads=True)
        total.append(magnitude(torch.cat([g.flatten() for g in found])))
    return torch.stack(total).mean(0)


def surprise(decisions: Decisions, size: int) -> Tensor:
    return decision_losses(decisions).sum()


def require_equal(model: nn.Module, problem: Problem) -> None:
    squared = mean_squared_gradient(model, problem, problem.retain, Meter())
    absolute = mean_absolute_gradient(model, problem, problem.retain, Meter(), surprise)
    for found, magnitude in ((squared, torch.square), (absolute, torch.abs)):
        expected = by_hand(model, problem, problem.retain, magnitude)
        assert expected.max() > 0
        torch.testing.assert_close(torch.cat([entry.flatten() for entry in found]), expected, **EXACT)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = make()
    # Norms begin as the identity, in which a forgotten scale or shift would not show.
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.double()


def convolutions(layer: nn.Module, channels: int) -> nn.Sequential:
    head = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    model = nn.Sequential(layer, nn.Identity(), nn.Tanh(), nn.MaxPool2d(2), head)
    model(torch.zeros(2, channels, 9, 8))
    return model


CHAINS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: MLP(widths=[6, 5], dropout=0.5)(images().data),
    "cnn with group norm": lambda: CNN(width=4, hidden=7, norm="group")(images().data),
    "cnn with batch norm": lambda: CNN(width=4, hidden=7, norm="batch")(images().data),
    "cnn without norm": lambda: CNN(width=4, hidden=7, norm="none")(images().data),
    "a dilated convolution": lambda: convolutions(nn.Conv2d(2, 4, (3, 2), (2, 1), (1, 2), (1, 2)), 2),
    "no bias": lambda: nn.Sequential(nn.Flatten(), nn.Linear(144, 3, bias=False)),
    "a norm without parameters": lambda: convolutions(nn.GroupNorm(1, 2, affine=False), 2),
    "linear layers over rows": lambda: nn.Sequential(nn.Linear(8, 4), nn.Flatten(), nn.Linear(72, 3)),
    "layer norm": lambda: nn.Sequential(nn.LayerNorm(8), nn.Flatten(), nn.Linear(144, 3), nn.LayerNorm(3)),
    "groups": lambda: convolutions(nn.Conv2d(2, 4, 3, groups=2), 2),
    "one dimension": lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(2, 4, 5, 7, 2), nn.Flatten(), nn.Linear(44, 3)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_in_chunks_is_every_example_alone(name: str) -> None:
    model, problem = seeded(CHAINS[name]), images()
    # Running statistics that are not those of any batch.
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2, generator=torch.Generator().manual_seed(1))
    assert chain(model) is not None
    require_equal(model, problem)


def test_a_chain_takes_fewer_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, model, passes = images(), seeded(CHAINS["mlp"]), []
    model.register_module("counter", Counter(passes))
    assert chain(model) is None
    # Before the first pass of each kind, the check of the model.
    mean_squared_gradient(model, problem, problem.retain, Meter())
    assert passes == [1, 2, 1, 2, *[1] * 40]
    passes.clear()
    monkeypatch.setattr(per_example, "PLAIN", {*per_example.PLAIN, Counter})
    mean_squared_gradient(model, problem, problem.retain, Meter())
    assert passes == [3, 1, 1, 1, 32, 8]


class Counter(nn.Module):
    """Notes how many examples pass."""

    def __init__(self, passes: list[int]) -> None:
        super().__init__()
        self.passes = passes

    def forward(self, inputs: Tensor) -> Tensor:
        self.passes.append(len(inputs))
        return inputs


def test_frozen_parameters_have_no_importance() -> None:
    model = seeded(CHAINS["cnn with group norm"])
    model[0].requires_grad_(False)
    model[1].weight.requires_grad_(False)
    model[-1].bias.requires_grad_(False)
    layers = chain(model)
    assert layers is not None and "0" not in layers and "1" in layers
    require_equal(model, images())


class Alike(nn.Linear):
    """Not what it is derived from."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) + inputs.mean()


class Other(nn.Sequential):
    """Runs its layers in another way."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) + super().forward(-inputs).tanh()


def _tied() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 5), nn.Tanh(), nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3))
    model[4].weight = model[3].weight
    return model


def _twice() -> nn.Module:
    layer = nn.Linear(5, 5)
    return nn.Sequential(nn.Flatten(), nn.Linear(144, 5), layer, nn.Tanh(), layer, nn.Linear(5, 3))


def _hooked() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 5), nn.Linear(5, 3))
    model[1].register_forward_hook(lambda layer, inputs, output: output.tanh())
    return model


def _more_parameters() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 3))
    model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    return model


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "in place": lambda: nn.Sequential(nn.Flatten(), nn.Linear(144, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)),
    "tied": _tied,
    "twice": _twice,
    "hooked": _hooked,
    "more parameters": _more_parameters,
    "a subclass": lambda: nn.Sequential(nn.Flatten(), Alike(144, 3)),
    "a subclass of the chain": lambda: Other(nn.Flatten(), nn.Linear(144, 3)),
    "a subclass of the chain inside": lambda: nn.Sequential(nn.Flatten(), Other(nn.Linear(144, 3))),
    "an unknown layer": lambda: nn.Sequential(nn.Flatten(), nn.Linear(144, 3), nn.PReLU(3)),
    "circular padding": lambda: convolutions(nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), 2),
    "padding by name": lambda: convolutions(nn.Conv2d(2, 4, 3, padding="same"), 2),
    "no chain": lambda: nn.ModuleList([nn.Linear(2, 3)]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_everything_else_goes_one_by_one(name: str) -> None:
    model = seeded(OTHERS[name])
    assert chain(model) is None
    if name != "no chain":
        require_equal(model, images())


def test_what_mixes_examples_is_no_chain() -> None:
    mixed = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(144, track_running_stats=False), nn.Linear(144, 3))
    assert chain(mixed) is None
    assert chain(nn.Sequential(nn.Flatten(0), nn.Linear(144, 3))) is None


def test_another_objective_goes_one_by_one() -> None:
    """It may run the model twice, as here, where each example is seen beside its mirror image."""

    class Mirrored(Classification):
        def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
            there, back = (
                super().decisions(model, batch),
                super().decisions(model, batch._replace(inputs=-batch.inputs)),
            )
            return there._replace(logits=there.logits + 2 * back.logits)

    plain = classes()
    problem = Problem(plain.data, plain.forget, plain.retain, plain.test, Mirrored(classes=3))
    require_equal(net(), problem)


def test_chunks_are_small_where_inputs_are_large() -> None:
    assert chunk_size(torch.zeros(1, 28, 28)) == 32
    assert chunk_size(torch.zeros(1, 3, 64, 64)) == 10
    assert chunk_size(torch.zeros(1, 3, 512, 512)) == 1


def test_language_models_go_one_by_one() -> None:
    problem, model = tokens(), gpt()
    found = mean_absolute_gradient(model, problem, problem.forget, Meter(), surprise)
    expected = by_hand(model, problem, problem.forget, torch.abs)
    torch.testing.assert_close(torch.cat([entry.flatten() for entry in found]), expected, **EXACT)


def test_the_absolute_value_is_inside_the_mean() -> None:
    """Two examples with opposite gradients: their mean is nothing, the mean of their absolute values is not."""
    problem, model = classes(), linear()
    first = problem.data.inputs[:1]
    data = Data(torch.cat([first, -first]).repeat(2, 1), torch.zeros(4, dtype=torch.int64), torch.arange(2),
                torch.tensor([2]), ("a", "b", "c"))  # fmt: skip
    pair = Problem(data, torch.tensor([0]), torch.tensor([1]), torch.tensor([2]))

    def first_logit(decisions: Decisions, size: int) -> Tensor:
        return decisions.logits[:, 0].sum()

    found = mean_absolute_gradient(model, pair, torch.arange(2), Meter(), first_logit)[0]
    torch.testing.assert_close(found[0], first[0].abs(), **EXACT)
    batch = gradient(first_logit(pair.objective.decisions(model, data.batch(torch.arange(2))), 2), model)
    assert batch[:5].abs().max() < 1e-12


def test_both_ways_take_what_the_budget_affords(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, model = images(), seeded(CHAINS["mlp"])
    chunked, meter = Meter(limit=37), Meter(limit=37)
    first = mean_squared_gradient(model, problem, problem.retain, chunked)
    monkeypatch.setattr(_checked, "chain", lambda model: None)
    second = mean_squared_gradient(model, problem, problem.retain, meter)
    assert chunked.gradients == meter.gradients == 37
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, **EXACT)
