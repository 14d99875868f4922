"""The check of per-example gradients against autograd: what differs goes one by one or is refused, by name."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _toy import EXACT, classes, net
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.base.errors import RunError
from expunge.core.case import Meter
from expunge.core.data import Batch, Data
from expunge.core.decisions import Decisions
from expunge.core.problem import Problem
from expunge.methods import _checked
from expunge.methods._gradients import mean_squared_gradient
from expunge.numerics.agreement import deviations
from expunge.numerics.gram import gram
from expunge.numerics.linops import differentiable


def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def alone(model: nn.Module, problem: Problem, ids: Tensor) -> Tensor:
    """Each example's gradient `[n, p]`, from a batch of its own."""
    rows = []
    for one in ids.split(1):
        loss = losses(model, (problem.data.inputs[one], problem.data.targets[one])).sum()
        gradients = torch.autograd.grad(loss, differentiable(model), allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(rows)


def flat(tensors: list[Tensor] | None) -> Tensor:
    assert tensors is not None
    return torch.cat([tensor.flatten() for tensor in tensors])


def _other_forward(model: nn.Sequential) -> None:
    layer: Any = model[2]
    layer.forward = lambda x: F.linear(x.square(), layer.weight, layer.bias)


def _run_twice(model: nn.Sequential) -> None:
    whole: Any = model
    whole.forward = lambda x: model[2](model[1](model[0](x))) + model[2](model[1](model[0](-2 * x)))


def _left_out(model: nn.Sequential) -> None:
    whole: Any = model
    whole.forward = lambda x: model[2](torch.tanh(F.linear(x, model[0].weight, model[0].bias)))


def _masked(model: nn.Sequential) -> None:
    model[0].weight.register_hook(lambda gradient: gradient * (gradient > 0))


def _reversed(model: nn.Sequential) -> None:
    model[2].register_full_backward_pre_hook(lambda layer, gradients: (-gradients[0],))
    model[0].weight.register_hook(lambda gradient: 3 * gradient)


def _used_elsewhere(model: nn.Sequential) -> None:
    layer: Any = model[2]
    layer.forward = lambda x: F.linear(F.linear(x, layer.weight), layer.weight.mT[:3, :3], layer.bias)


CHANGED: dict[str, tuple[Callable[[nn.Sequential], None], str]] = {
    "another forward of a layer": (_other_forward, r"2 \(Linear\).*differ by"),
    "another forward of the chain": (_run_twice, r"model \(Sequential\).*other shapes"),
    "a layer that is not called": (_left_out, r"model \(Sequential\).*other shapes"),
    "a hook of a weight": (_masked, r"0 \(Linear\).*differ by"),
    "two hooks": (_reversed, r"0 \(Linear\).*differ by"),
    "a weight used again": (_used_elsewhere, r"2 \(Linear\).*differ by"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_chain_that_is_none_goes_one_by_one_and_is_named(name: str) -> None:
    change, message = CHANGED[name]
    problem, model = classes(), net()
    change(model)
    with pytest.warns(UserWarning, match=f"^{message}.*one by one"):
        first = mean_squared_gradient(model, problem, problem.retain, Meter())
    torch.testing.assert_close(flat(first), alone(model, problem, problem.retain).square().mean(0), **EXACT)
    # Once for each model: no second warning, which would be an error here.
    assert torch.equal(flat(mean_squared_gradient(model, problem, problem.retain, Meter())), flat(first))


def test_rounding_of_other_types_is_no_difference() -> None:
    problem = classes()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert mean_squared_gradient(net().to(dtype), problem, problem.retain, Meter()) is not None


@pytest.mark.parametrize("clipped", [False, True])
def test_a_gradient_that_rightly_depends_on_the_number_of_copies_is_no_error(clipped: bool) -> None:
    torch.manual_seed(0)
    problem = classes()
    model = Mixing(lambda x: x).double()
    if clipped:
        model.last.weight.register_hook(lambda gradient: gradient.clamp(-1e-3, 1e-3))
    else:
        model.first = nn.Sequential(Rounded(), nn.Embedding(9, 7, scale_grad_by_freq=True).double(), nn.Flatten(),
                                    nn.Linear(35, 7).double())  # fmt: skip
    squared = mean_squared_gradient(model, problem, problem.retain, Meter())
    truth = alone(model, problem, problem.retain)
    torch.testing.assert_close(flat(squared), truth.square().mean(0), **EXACT)


class Rounded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x.abs() * 3).long().clamp(max=8)


class Tokens(nn.Module):
    """A convolution, a norm that is no module, and tokens."""

    def __init__(self, norm: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Conv2d(1, 3, 3, padding=1), norm, nn.Linear(3, 3)
        self.scale, self.shift = nn.Parameter(torch.rand(3) + 0.5), nn.Parameter(torch.rand(3))
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("var", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self, self.body(x)).flatten(2).transpose(1, 2).tanh().mean(1))


class Doubled(torch.autograd.Function):
    """A derivative that is twice too large for one example."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * (2 if len(gradients[0]) == 1 else 1)


WRONG: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "batch norm of torch": lambda m, x: torch.batch_norm(x, m.scale, m.shift, m.mean, m.var, False, 0.1, 1e-5, False),
    "instance norm of torch": lambda m, x: torch.instance_norm(x, m.scale, m.shift, None, None, True, 0.1, 1e-5, False),
    "native batch norm": lambda m, x: torch.native_batch_norm(x, m.scale, m.shift, m.mean, m.var, False, 0.1, 1e-5)[0],
    "a function of one's own": lambda m, x: Doubled.apply(x),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("what", ["importances", "gram"])
def test_wrong_gradients_of_one_example_are_refused_by_name(name: str, what: str) -> None:
    torch.manual_seed(0)
    model = Tokens(WRONG[name]).double().eval()
    data = Data(torch.randn(6, 1, 4, 5).double(), torch.arange(6) % 3, torch.arange(4), torch.tensor([4, 5]))
    problem = Problem(data, torch.tensor([0]), torch.arange(1, 4), data.test)
    with pytest.raises(RunError, match=r"^behind body \(Conv2d\): PyTorch's gradient of one example differs by \d+%"):
        if what == "importances":
            mean_squared_gradient(model, problem, problem.retain, Meter())
        else:
            gram(losses, model, differentiable(model), (data.inputs, data.targets))


class Mixing(nn.Module):
    """Examples depend on each other: the gradient of one example is that of a batch of its own."""

    def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.mix, self.last = nn.Linear(5, 7), mix, nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.mix(self.first(x)).tanh())


def _only_one(x: Tensor) -> Tensor:
    if len(x) > 1:
        raise ValueError("takes one example")
    return x


MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "the mean": lambda x: x + x.mean(0),
    "the sum": lambda x: x + x.sum(0),
    "the next example": lambda x: x + 0.5 * x.roll(1, 0),
    "the largest": lambda x: x / x.abs().max(),
    "the place": lambda x: x * torch.arange(1, len(x) + 1).to(x)[:, None],
}


def _positions_first(x: Tensor) -> Tensor:
    return x.view(len(x), 7, 1).transpose(0, 1).reshape(-1, 1)


class Reordered(nn.Module):
    """Positions in the first place, all examples in one dimension, and dimensions that vanish for one example."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.each, self.last = nn.Linear(5, 7), nn.Linear(1, 1), nn.Linear(7, 3)
        self.around = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.each(_positions_first(self.first(x)).tanh()).view(7, len(x)).mT
        return self.last(self.around(hidden.squeeze()).view(len(x), 7).sin())


def test_an_order_of_its_own_is_no_wrong_gradient() -> None:
    torch.manual_seed(0)
    problem, model = classes(), Reordered().double()
    squared = mean_squared_gradient(model, problem, problem.retain, Meter())
    torch.testing.assert_close(flat(squared), alone(model, problem, problem.retain).square().mean(0), **EXACT)


@pytest.mark.parametrize("name", [*MIXING, "one example only"])
def test_examples_that_depend_on_each_other_go_one_by_one(name: str) -> None:
    torch.manual_seed(0)
    problem, model = classes(), Mixing(MIXING.get(name, _only_one)).double()
    truth = alone(model, problem, problem.retain)
    squared = mean_squared_gradient(model, problem, problem.retain, Meter())
    torch.testing.assert_close(flat(squared), truth.square().mean(0), **EXACT)
    if name in MIXING:
        batch = problem.data.batch(problem.retain)
        result = gram(losses, model, differentiable(model), (batch.inputs, batch.targets), block=7)
        torch.testing.assert_close(result.matrix, truth @ truth.T, **EXACT)
        assert set(result.unsupported) >= {"first.weight", "first.bias"}


def test_the_check_changes_no_random_state_and_charges_nothing() -> None:
    problem = classes()
    for model in (Mixing(lambda x: F.dropout(x, 0.5, training=True)).double(), net()):
        meter, copied = Meter(), copy.deepcopy(model)
        torch.manual_seed(1)
        mean_squared_gradient(model, problem, problem.retain, meter)
        after = torch.get_rng_state()
        assert meter.gradients == len(problem.retain)
        torch.manual_seed(1)
        for one in problem.retain.split(1 if isinstance(copied, Mixing) else 32):
            problem.objective.decisions(copied, problem.data.batch(one))
        assert torch.equal(torch.get_rng_state(), after)


def test_a_model_is_checked_once_and_not_kept_alive() -> None:
    problem, model, sizes = classes(), net(), []
    plain = problem.objective.decisions

    def counting(model: nn.Module, batch: Batch) -> Decisions:
        sizes.append(batch.size)
        return plain(model, batch)

    object.__setattr__(problem.objective, "decisions", counting)
    for _ in range(2):
        mean_squared_gradient(model, problem, problem.retain, Meter())
    assert sizes == [3, 1, 1, 1, 18, 18]
    count = len(_checked._EXACT)
    del model
    gc.collect()
    assert len(_checked._EXACT) < count


def test_a_deviation_is_relative_to_the_gradient_and_rounding_is_none() -> None:
    truth = {"a": torch.tensor([3.0, 4.0]), "zero": torch.zeros(2), "b": torch.tensor([1.0])}
    ours = {"a": torch.tensor([3.0, 5.0]), "zero": torch.full((2,), 1e-6), "b": torch.tensor([1.0001])}
    assert deviations(ours, truth, torch.float32) == {"a": pytest.approx(0.2)}
    assert set(deviations(ours, truth, torch.float64)) == {"a", "zero", "b"}
    assert set(deviations({"b": torch.tensor([float("nan")])}, truth, torch.float32)) == {"b"}
