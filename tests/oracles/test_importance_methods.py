"""SSD and Fisher forgetting: importance against softmax regression's closed form, dampening and noise by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from _toy import EXACT, classes, doubled, gpt, gradient, linear, net, tokens, vector
from scipy import stats
from torch import Tensor, nn

from expunge.base.seeds import derive
from expunge.core.case import Meter
from expunge.core.data import Data
from expunge.core.decisions import decision_losses
from expunge.core.problem import Problem
from expunge.methods._dampening import factors
from expunge.methods._gradients import mean_squared_gradient
from expunge.methods._noise import standard_normal
from expunge.methods.fisher_forgetting import FisherForgetting, deviation
from expunge.methods.ssd import SSD


def closed_form(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Softmax regression: the gradient of example i is (p_i - e_i) x_i^T for the weight, p_i - e_i for the bias."""
    wrong = model(inputs).softmax(1).detach() - nn.functional.one_hot(targets, 3)
    weight = (wrong[:, :, None] * inputs[:, None, :]).square().mean(0)
    return torch.cat([weight.flatten(), wrong.square().mean(0)])


def measured(model: nn.Module, problem: Problem, ids: Tensor, **options: object) -> Tensor:
    return torch.cat([entry.flatten() for entry in mean_squared_gradient(model, problem, ids, Meter(), **options)])


def test_importance_is_the_mean_of_squares_and_not_the_square_of_the_mean():
    problem, model = classes(), linear()
    inputs, targets, _ = problem.data.batch(problem.retain)
    expected = closed_form(model, inputs, targets)
    torch.testing.assert_close(measured(model, problem, problem.retain), expected, **EXACT)
    # Published code squares the gradient of a batch's mean loss: far smaller, and smaller the larger the batch.
    whole = gradient(nn.functional.cross_entropy(model(inputs), targets), model).square()
    halves = [
        gradient(nn.functional.cross_entropy(model(inputs[i::2]), targets[i::2]), model).square() for i in range(2)
    ]
    assert whole.sum() < (halves[0] + halves[1]).sum() / 2 < expected.sum()


def test_importance_of_a_text_is_that_of_its_whole_likelihood():
    problem, model = tokens(), gpt()
    squares = []
    for i in problem.forget:
        losses = decision_losses(problem.objective.decisions(model, problem.data.batch(i[None])))
        assert len(losses) == 5
        squares.append(gradient(losses.sum(), model).square())
    torch.testing.assert_close(measured(model, problem, problem.forget), torch.stack(squares).mean(0), **EXACT)


def test_importance_depends_neither_on_dropout_nor_on_the_rest_of_a_batch():
    problem = classes()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    model[2].eval()  # modes differ, and must be left as they are
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    first, second = (measured(model, problem, problem.retain) for _ in range(2))
    assert torch.equal(first, second)
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    alone = torch.stack([measured(model, problem, i[None]) for i in problem.retain]).mean(0)
    torch.testing.assert_close(first, alone, **EXACT)


def test_importance_takes_what_the_budget_affords():
    problem, model, meter = classes(), linear(), Meter(limit=4)
    found = mean_squared_gradient(model, problem, problem.retain, meter)
    assert meter.gradients == 4
    few = measured(model, problem, problem.retain[:4])
    torch.testing.assert_close(torch.cat([entry.flatten() for entry in found]), few, **EXACT)
    assert mean_squared_gradient(model, problem, problem.retain, meter) is None


def test_a_parameter_without_influence_has_no_importance():
    problem, model = classes(), linear()
    model.register_parameter("unused", nn.Parameter(torch.ones(2).double()))
    assert measured(model, problem, problem.forget)[:2].tolist() == [0, 0]


# --- SSD -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dampening, expected",
    # Selected are those where forget > 3 * whole: the first two. The third is exactly at the threshold.
    [(1.0, [0.1, 0.25, 1, 1, 1]), (0.5, [0.05, 0.125, 1, 1, 1]), (6.0, [0.6, 1, 1, 1, 1])],
)
def test_dampening_by_hand(dampening, expected):
    forget = torch.tensor([10.0, 4.0, 6.0, 1.0, 0.0], dtype=torch.float64)
    whole = torch.tensor([1.0, 1.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    found = factors(forget, whole, 3.0, dampening)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), **EXACT)


def test_ssd_multiplies_the_original_weights():
    problem, model = classes(), linear()
    forget = closed_form(model, *problem.data.batch(problem.forget)[:2])
    whole = closed_form(model, *problem.data.batch(problem.train)[:2])
    expected = vector(model) * torch.where(forget > 1.1 * whole, (0.5 * whole / forget).clamp(max=1), 1.0)
    done = SSD(alpha=1.1, dampening=0.5)(model, problem, None, 0)
    assert 0 < (expected != vector(model)).sum() < len(expected)
    torch.testing.assert_close(vector(done.model), expected, **EXACT)


def test_ssd_does_not_know_how_often_the_data_are_there():
    """Twice the same data are the same data: importance is a mean over examples, in whatever batches."""
    problem, model = classes(), linear()
    a, b = (SSD(alpha=1.1)(model, p, None, 0).model for p in (problem, doubled(problem)))
    torch.testing.assert_close(vector(a), vector(b), **EXACT)


def test_ssd_without_room_for_both_sets_leaves_the_model_alone():
    problem, model = classes(), linear()
    done = SSD(alpha=0.1)(model, problem, None, 0, budget=len(problem.forget))
    assert torch.equal(vector(done.model), vector(model))


# --- Fisher forgetting -----------------------------------------------------------------------------------------------


def test_the_noise_has_the_stated_variance_up_to_the_cap():
    fisher = torch.tensor([1.0, 1e-4, 1e-12, 0.0], dtype=torch.float64)
    papers = deviation(fisher, 1e-4, 0.5, 0.5)  # variance alpha / sqrt(F)
    torch.testing.assert_close(papers, torch.tensor([0.01, 0.1, 0.5, 0.5], dtype=torch.float64), **EXACT)
    codes = deviation(fisher, 1e-4, 1.0, 5.0)  # variance alpha / F
    torch.testing.assert_close(codes, torch.tensor([0.01, 1.0, 5.0, 5.0], dtype=torch.float64), **EXACT)


def test_labels_drawn_from_the_model_give_the_fisher_information():
    torch.manual_seed(0)
    model, x = linear(), torch.randn(5).double()
    n = 4000
    data = Data(
        x.repeat(n + 2, 1),
        torch.zeros(n + 2, dtype=torch.int64),
        torch.arange(n + 1),
        torch.tensor([n + 1]),
        ("a", "b", "c"),
    )
    problem = Problem(data, torch.tensor([n]), torch.arange(n), torch.tensor([n + 1]))
    found = measured(model, problem, problem.retain, labels=torch.Generator().manual_seed(0))[15:]  # of the bias
    p = model(x).softmax(0).detach()
    each = (p - torch.eye(3, dtype=torch.float64)).square()  # [label drawn, entry]
    mean, variance = p @ each, p @ each.square() - (p @ each).square()
    # Five standard errors of a mean of n independent draws.
    assert ((found - mean).abs() < 5 * (variance / n).sqrt()).all()
    # With the data's own labels it is another number: the empirical Fisher information.
    assert ((measured(model, problem, problem.retain)[15:] - mean).abs() > 5 * (variance / n).sqrt()).any()


def test_fisher_forgetting_adds_gaussian_noise_of_that_spread():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 400), nn.Tanh(), nn.Linear(400, 3)).double()
    problem, method, seed = classes(), FisherForgetting(alpha=1e-3, cap=10.0), 3
    order, labels = (torch.Generator().manual_seed(derive(seed, name)) for name in ("retain", "labels"))
    retain = problem.retain[torch.randperm(len(problem.retain), generator=order)]
    spread = deviation(measured(model, problem, retain, labels=labels), 1e-3, 0.5, 10.0)
    assert spread.max() / spread.min() > 3
    noise = (vector(method(model, problem, None, seed).model) - vector(model)) / spread
    drawn = torch.Generator().manual_seed(derive(seed, "noise"))
    expected = torch.cat([standard_normal(parameter, drawn).flatten() for parameter in model.parameters()])
    # Weights of order 1 lose digits of noise as small as 1e-3 of them.
    torch.testing.assert_close(noise, expected, rtol=0, atol=1e-10)
    # A fixed seed: not a flaky test, but one that standard normal numbers pass in 999 of 1,000 seeds.
    assert stats.kstest(noise.numpy(), "norm").pvalue > 1e-3


def test_fisher_forgetting_is_the_same_noise_in_either_precision():
    problem, method = classes(), FisherForgetting(alpha=10.0, power=0.0)  # the same spread everywhere, the cap
    model = net()
    double = vector(method(model, problem, None, 0).model) - vector(model)
    single = vector(method(copy.deepcopy(model).float(), problem, None, 0).model) - vector(copy.deepcopy(model).float())
    # Float32 weights of order 1 are rounded to 1e-7.
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-6)
