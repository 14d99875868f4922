"""Methods of weight space: what they do to the weights once, and what rewards them for leaving the original."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from _toy import ALL_AT_ONCE, EXACT, classes, cross_entropy, gpt, gradient, net, tokens, vector
from torch import Tensor, nn

from expunge.core.problem import Problem
from expunge.methods import weight_distance_reg
from expunge.methods.connectivity_breaking import ConnectivityBreaking
from expunge.methods.finetune import Finetune
from expunge.methods.weight_attenuation import WeightAttenuation
from expunge.methods.weight_distance_reg import WeightDistanceReg, distance
from expunge.methods.weight_distortion import WeightDistortion
from expunge.methods.weight_dropout import WeightDropout

RATE, MOMENTUM = 0.05, 0.9
STEPS = {"learning_rate": RATE, "optimizer": "sgd", "batch_size": ALL_AT_ONCE}
PAIRED = STEPS | {"forget_batch_size": ALL_AT_ONCE}
METHODS = [WeightAttenuation(factor=0.5), WeightDropout(p=0.5), WeightDistortion()]
STILL = STEPS | {"epochs": 1, "learning_rate": 1e-30}
PROBLEMS = pytest.mark.parametrize("problem, model", [(classes(), net()), (tokens(), gpt())], ids=["net", "gpt"])


def load(model: nn.Module, values: Tensor) -> nn.Module:
    nn.utils.vector_to_parameters(values, model.parameters())
    return model


def descend(model: nn.Module, start: Tensor, slope, steps: int) -> Tensor:
    """SGD with momentum by hand: where it ends, a vector."""
    hand, momentum = load(copy.deepcopy(model), start.clone()), torch.zeros_like(start)
    for _ in range(steps):
        momentum = MOMENTUM * momentum + slope(hand)
        load(hand, vector(hand) - RATE * momentum)
    return vector(hand)


# --- Once, then repair -----------------------------------------------------------------------------------------------


@PROBLEMS
def test_attenuation_shrinks_once_and_then_descends_on_retain(problem: Problem, model: nn.Module) -> None:
    found = WeightAttenuation(factor=0.5, epochs=3, **STEPS)(model, problem, None, 0).model
    expected = descend(model, 0.5 * vector(model), lambda m: gradient(cross_entropy(problem, m, problem.retain), m), 3)
    torch.testing.assert_close(vector(found), expected, **EXACT)


@PROBLEMS
def test_dropout_zeroes_once_and_then_descends_on_retain(problem: Problem, model: nn.Module) -> None:
    start = vector(WeightDropout(p=0.3, **STILL)(model, problem, None, 5).model)
    found = WeightDropout(p=0.3, epochs=3, **STEPS)(model, problem, None, 5).model
    expected = descend(model, start, lambda m: gradient(cross_entropy(problem, m, problem.retain), m), 3)
    torch.testing.assert_close(vector(found), expected, **EXACT)


@pytest.mark.parametrize("p", [0.0, 0.2, 0.7, 1.0])
def test_dropout_zeroes_its_share_and_leaves_the_others_as_they_were(p: float) -> None:
    model = nn.Sequential(nn.Linear(5, 2000), nn.Tanh(), nn.Linear(2000, 3)).double()
    before, after = (vector(m) for m in (model, WeightDropout(p=p, **STILL)(model, classes(), None, 1).model))
    # A rate of 1e-30 moves a zero, but by as little; what is left is compared to the bit.
    gone, n = after.abs() < 1e-20, len(before)
    assert torch.equal(after[~gone], before[~gone])
    # Four standard errors of a share.
    assert abs(gone.double().mean().item() - p) <= 4 * math.sqrt(p * (1 - p) / n)


def test_dropout_draws_by_seed_and_for_each_weight_of_its_own() -> None:
    model = nn.Sequential(nn.Linear(5, 2000), nn.Tanh(), nn.Linear(2000, 3)).double()
    one, same, other = (
        vector(WeightDropout(p=0.5, **STILL)(model, classes(), None, seed).model).abs() < 1e-20 for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and 0.4 < (one == other).double().mean() < 0.6
    first, last = one[:6000], one[12_000:18_000]
    assert 0.4 < (first == last).double().mean() < 0.6


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_frozen_weights_are_left_alone_and_tied_ones_changed_once(method) -> None:
    method = replace(method, **STILL)
    model = gpt()
    model.norm.weight.requires_grad_(False)
    done = method(model, tokens(), None, 0).model
    assert torch.equal(done.norm.weight, model.norm.weight)
    assert done.head.weight is done.tokens.weight
    assert not torch.equal(done.tokens.weight, model.tokens.weight)
    if isinstance(method, WeightAttenuation):
        assert torch.equal(done.tokens.weight, 0.5 * model.tokens.weight)


# --- Distance --------------------------------------------------------------------------------------------------------


@PROBLEMS
def test_the_distance_is_rewarded(problem: Problem, model: nn.Module) -> None:
    """Its gradient by hand: (theta - theta0) / (n d), zero at the start; plus would be regularisation *towards* it."""
    start, alpha = vector(model), 3.0

    def slope(m: nn.Module) -> Tensor:
        moved = vector(m) - start
        d = (moved.square().mean() + 1e-8).sqrt()
        return gradient(cross_entropy(problem, m, problem.retain), m) - alpha * moved / (len(moved) * d)

    found = WeightDistanceReg(alpha=alpha, epochs=4, **STEPS)(model, problem, None, 0).model
    torch.testing.assert_close(vector(found), descend(model, start, slope, 4), **EXACT)
    plain = Finetune(epochs=4, **STEPS)(model, problem, None, 0).model
    further, near = ((vector(m) - start).norm() for m in (found, plain))
    assert further > near + 1e-4


def test_the_mean_is_over_all_entries_together() -> None:
    here, origin = [torch.tensor([3.0, 0.0, 0.0]), torch.tensor([1.0])], [torch.zeros(3), torch.zeros(1)]
    # (9 + 1) / 4; a mean of the means of each tensor would be (3 + 1) / 2.
    assert distance(here, origin).item() == pytest.approx(math.sqrt(2.5 + 1e-8), rel=1e-7)


@PROBLEMS
def test_cross_entropy_makes_the_first_move(problem: Problem, model: nn.Module) -> None:
    first, plain = (
        vector(m(model, problem, None, 0).model)
        for m in (WeightDistanceReg(alpha=1e6, epochs=1, **STEPS), Finetune(epochs=1, **STEPS))
    )
    assert torch.equal(first, plain)


def test_without_the_number_under_the_root_the_start_has_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torch.ones(3, requires_grad=True)
    assert torch.autograd.grad(distance([weights], [torch.ones(3)]), weights)[0].tolist() == [0, 0, 0]
    monkeypatch.setattr(weight_distance_reg, "EPSILON", 0.0)
    assert torch.autograd.grad(distance([weights], [torch.ones(3)]), weights)[0].isnan().all()


# --- A barrier on the way to the original ----------------------------------------------------------------------------


def barrier_slope(problem: Problem, model: nn.Module, alpha: float, gamma: float):
    """The gradient of the loss at a model, through theta only: half of the midpoint's own gradient."""
    start = vector(model)

    def slope(m: nn.Module) -> Tensor:
        middle = load(copy.deepcopy(m).eval(), (start + vector(m)) / 2)
        height = cross_entropy(problem, middle, problem.train)
        below = height.item() < gamma
        kept = gradient(cross_entropy(problem, m, problem.retain), m)
        return kept - alpha * 0.5 * gradient(height, middle) * below

    return slope


@PROBLEMS
def test_the_barrier_is_raised_by_its_gradient_through_the_model_alone(problem: Problem, model: nn.Module) -> None:
    found = ConnectivityBreaking(alpha=0.7, epochs=4, **PAIRED)(model, problem, None, 0).model
    expected = descend(model, vector(model), barrier_slope(problem, model, 0.7, 50), 4)
    torch.testing.assert_close(vector(found), expected, **EXACT)


@PROBLEMS
def test_above_its_cap_the_barrier_has_no_gradient(problem: Problem, model: nn.Module) -> None:
    height = cross_entropy(problem, model, problem.train).item()
    settings = {"alpha": 0.7, "epochs": 1, **PAIRED}
    capped, free = (
        vector(ConnectivityBreaking(gamma=g * height, **settings)(model, problem, None, 0).model) for g in (0.99, 1.01)
    )
    plain = vector(Finetune(epochs=1, **STEPS)(model, problem, None, 0).model)
    assert torch.equal(capped, plain) and not torch.allclose(free, plain)


class Normed(nn.Sequential):
    """Batch norm, and a layer that is used twice."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 5), nn.Linear(5, 3))
        self.double()
        self[3].weight = self[0].weight
        with torch.no_grad():
            self[1].running_mean.normal_()
            self[1].running_var.uniform_(0.5, 2)


def test_running_statistics_are_half_way_too_and_a_tied_weight_stays_tied() -> None:
    problem, model = classes(), Normed().eval()
    method = ConnectivityBreaking(alpha=0.7, epochs=3, **PAIRED)
    found = method(model, problem, None, 0).model
    hand, momentum = copy.deepcopy(model).train(), torch.zeros_like(vector(model))
    for _ in range(3):
        kept = gradient(cross_entropy(problem, hand, problem.retain), hand)  # moves the running statistics
        middle = load(copy.deepcopy(hand).eval(), (vector(model) + vector(hand)) / 2)
        for name in ("running_mean", "running_var"):
            getattr(middle[1], name).copy_((getattr(model[1], name) + getattr(hand[1], name)) / 2)
        slope = kept - 0.7 * 0.5 * gradient(cross_entropy(problem, middle, problem.train), middle)
        momentum = MOMENTUM * momentum + slope
        load(hand, vector(hand) - RATE * momentum)
    torch.testing.assert_close(vector(found), vector(hand), **EXACT)
    torch.testing.assert_close(found[1].running_mean, hand[1].running_mean, **EXACT)
    assert int(found[1].num_batches_tracked) == 3, "the midpoint leaves no trace in the statistics"
    assert found[3].weight is found[0].weight


def test_a_midpoint_costs_a_gradient_of_each_example() -> None:
    problem, method = classes(), ConnectivityBreaking(epochs=2, batch_size=9, forget_batch_size=4)
    full = method(net(), problem, None, 0).cost.gradients
    # Four steps; the forget set of 6 is cycled as 4, 2, 4, 2.
    assert full == 2 * (2 * 18 + 6)
    # The first step costs 22: a budget of one less affords none.
    assert [method(net(), problem, None, 0, budget).cost.gradients for budget in (21, 22)] == [0, 22]
