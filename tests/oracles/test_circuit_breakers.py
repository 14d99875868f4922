"""Circuit breakers: both terms and their schedule written out, whose hidden states they are, and which layers."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from _toy import ALL_AT_ONCE, EXACT, classes, gpt, job, linear, tokens, vector
from torch import Tensor, nn

from expunge.base.errors import MissingError, SpecError
from expunge.core.features import FeatureSite
from expunge.core.modules import state_digest
from expunge.core.problem import Problem
from expunge.data.digits import Digits
from expunge.methods.circuit_breakers import CircuitBreakers, aligned
from expunge.models.cnn import CNN
from expunge.train.loop import PairBatch

AT_ONCE = {"batch_size": ALL_AT_ONCE, "forget_batch_size": ALL_AT_ONCE}


def deep(seed: int = 0) -> nn.Sequential:
    """Three hidden states: after each of the first three linear layers."""
    torch.manual_seed(seed)
    sizes = [5, 7, 6, 8]
    hidden = [layer for i, o in itertools.pairwise(sizes) for layer in (nn.Linear(i, o), nn.Tanh())]
    return nn.Sequential(*hidden, nn.Linear(8, 3)).double()


def deep_states(model: nn.Module, problem: Problem, ids: Tensor) -> list[Tensor]:
    """The second and the third hidden state, written out."""
    found, hidden = [], problem.data.inputs[ids]
    for index in (0, 2, 4):
        hidden = torch.tanh(hidden @ model[index].weight.T + model[index].bias)
        found.append(hidden)
    return found[1:]


def gpt_states(model: nn.Module, problem: Problem, ids: Tensor) -> list[Tensor]:
    """The residual stream between attention and perceptron, and what the output layer is given; per decided token."""
    inputs, decided = problem.data.inputs[ids], problem.data.targets[ids] != -100
    stream = model.tokens(inputs) + model.positions.weight[: inputs.shape[1]]
    block = model.blocks[0]
    middle = stream + block._attend(block.norm1(stream))
    last = model.norm(middle + block.down(torch.nn.functional.gelu(block.up(block.norm2(middle)))))
    return [middle[decided], last[decided]]


def moved(model: nn.Module) -> nn.Module:
    """A model somewhere else: at the original itself both terms are flat."""
    copied, generator = copy.deepcopy(model), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=0.3)
    return copied


States = Callable[[nn.Module, Problem, Tensor], list[Tensor]]
SETTINGS = pytest.mark.parametrize(
    "problem, model, states, named",
    [(classes(), deep(), deep_states, ("3", "5")), (tokens(), gpt(), gpt_states, ())],
    ids=["net", "gpt"],
)


@SETTINGS
def test_both_terms_and_their_schedule(
    problem: Problem, model: nn.Module, states: States, named: tuple[str, ...]
) -> None:
    method = CircuitBreakers(alpha=0.8, hold=0.6, epochs=4, layers=named, **AT_ONCE)
    student = copy.deepcopy(model)
    step = method.pair_loss(student, job(problem, student))
    # Only now does the student move: a teacher that shares its memory would move along.
    student.load_state_dict(moved(model).state_dict())
    pair = PairBatch(problem.data.batch(problem.retain), problem.data.batch(problem.forget))
    with torch.no_grad():
        retain0, forget0 = (states(model, problem, ids) for ids in (problem.retain, problem.forget))
    for done in (0.25, 0.5, 0.75, 1.0):
        value = torch.zeros(())
        retain, forget = (states(student, problem, ids) for ids in (problem.retain, problem.forget))
        for r, r0, f, f0 in zip(retain, retain0, forget, forget0, strict=True):
            cosines = (f * f0).sum(1) / (f.square().sum(1) * f0.square().sum(1)).sqrt()
            value = value + 0.5 * 0.8 * (
                0.6 * done * (r - r0).square().mean() + (1 - done) * cosines.clamp(min=0).mean()
            )
        found = step(pair)
        torch.testing.assert_close(found, value, **EXACT)
        slope = torch.autograd.grad(found, list(student.parameters()), allow_unused=True, materialize_grads=True)
        expected = torch.autograd.grad(value, list(student.parameters()), allow_unused=True, materialize_grads=True)
        assert max(entry.abs().max() for entry in slope) > 1e-3
        for a, b in zip(slope, expected, strict=True):
            torch.testing.assert_close(a, b, **EXACT)


def test_the_cosine_is_that_of_each_example_and_not_negative() -> None:
    reference = torch.tensor([[1.0, 0.0], [10.0, 0.0], [0.0, 1.0]])
    features = torch.tensor([[1.0, 1.0], [0.0, 3.0], [0.0, -9.0]])
    # 45 degrees, 90, 180. Over the batch as one vector it would be negative: zero, and nothing left to do.
    assert aligned(features, reference).item() == pytest.approx(0.5**0.5 / 3, rel=1e-6)
    assert (features * reference).sum() < 0
    # A feature map is one feature: over channels alone each position would count for itself.
    maps, reference = torch.tensor([[[3.0, 0.0], [0.0, 4.0]]]), torch.tensor([[[3.0, 0.0], [4.0, 0.0]]])
    assert aligned(maps, reference).item() == pytest.approx(9 / 25, rel=1e-6)


def test_hidden_states_of_forget_turn_away_and_those_of_retain_stay() -> None:
    data = Digits(train=200, test=20)()
    zeros = data.targets[:200] == 0
    problem = Problem(data, torch.arange(200)[zeros], torch.arange(200)[~zeros], data.test)
    torch.manual_seed(0)
    model = CNN(width=4)(data).eval()
    done = CircuitBreakers(learning_rate=1e-3, epochs=20, batch_size=32, hold=1.0)(model, problem, None, 0).model

    def cosines(ids: Tensor) -> Tensor:
        with torch.no_grad():
            before, after = (m[:-1](data.inputs[ids]) for m in (model, done))
        return torch.nn.functional.cosine_similarity(before, after)

    assert cosines(problem.forget).mean() < 0.3 < 0.7 < cosines(problem.retain).mean()
    # What comes after the last layer that is read is as it was.
    assert torch.equal(done[-1].weight, model[-1].weight) and torch.equal(done[-1].bias, model[-1].bias)


@pytest.mark.parametrize("batch_size, steps", [(8, 6), (17, 2), (18, 2)])
def test_the_schedule_ends_with_the_last_step(batch_size: int, steps: int) -> None:
    """At the original itself nothing is to be held and every cosine is 1: what is left is c_u."""
    problem, model = classes(), deep()
    method = CircuitBreakers(epochs=2, batch_size=batch_size)
    step, pairs = method.pair_loss(model, job(problem, model)), list(method.pairs(job(problem, model)))
    found = [step(pair).item() for pair in pairs]
    assert found == pytest.approx([1 - (s + 1) / steps for s in range(steps)], abs=1e-12)


@pytest.mark.parametrize("optimizer, leaves", [("sgd", False), ("adam", True)])
def test_the_original_is_a_flat_place_that_adam_leaves_on_rounding_alone(optimizer: str, leaves: bool) -> None:
    problem, model = classes(), deep()
    method = CircuitBreakers(optimizer=optimizer, learning_rate=0.05, epochs=30, hold=0.0)
    done = method(model, problem, None, 0).model
    far = (vector(done) - vector(model)).abs().max().item()
    assert far > 0.1 if leaves else far < 1e-12


def test_by_default_the_layers_are_at_half_depth_and_last() -> None:
    method = CircuitBreakers()

    def chosen(model: nn.Module, problem: Problem) -> list[str]:
        assert all(layer.given for layer in method.chosen(model, problem))
        return [layer.path for layer in method.chosen(model, problem)]

    assert chosen(deep(), classes()) == ["4", "6"]
    assert chosen(gpt(), tokens()) == ["blocks.0.norm2", "head"]
    data = Digits(train=40, test=20)()
    images = Problem(data, torch.arange(5), torch.arange(5, 40), data.test)
    assert chosen(CNN(width=4, norm="none")(data), images) == ["4", "9"]
    two = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    assert chosen(two, classes()) == ["2"]
    frozen = deep()
    frozen[:3].requires_grad_(False)  # the first two hidden states cannot change
    assert chosen(frozen, classes()) == ["6"]


def test_choosing_layers_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)).double().train()
    before = state_digest(model)
    for method in (CircuitBreakers(), CircuitBreakers(layers=("1",))):
        method.chosen(model, classes())
    assert state_digest(model) == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_layers_that_cannot_be_used_are_named() -> None:
    def tried(model: nn.Module, *layers: str) -> None:
        CircuitBreakers(layers=layers).apply(model, job(classes(), model))

    with pytest.raises(SpecError, match=r"method\.circuit_breakers\.layers: unknown layer '7'.*allowed: 0, 1, 2"):
        tried(deep(), "7")
    with pytest.raises(SpecError, match=r"unknown layer ''"):
        tried(deep(), "")
    with pytest.raises(MissingError, match=r"no hidden state depends on trainable weights"):
        tried(linear())
    frozen = deep()
    frozen[:4].requires_grad_(False)
    with pytest.raises(SpecError, match=r"'3' depends on no trainable weight"):
        tried(frozen, "5", "3")
    with pytest.raises(SpecError, match=r"'unused' has NoneType, not features"):
        model = deep()
        model.unused = nn.Identity()
        model.forward = lambda inputs: nn.Sequential.forward(model[:7], inputs)
        tried(model, "unused")
    assert CircuitBreakers(layers=["3"]).chosen(deep(), classes()) == [FeatureSite("3")]
