"""LFSSD, ASSD and Potion: importance in closed form, the percentile against numpy, the search against a plain loop."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from _toy import EXACT, classes, cross_entropy, doubled, gpt, gradient, job, linear, net, tokens, vector
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.core.case import Meter
from expunge.core.method import Method
from expunge.core.problem import Problem
from expunge.methods._dampening import Importances, adaptive_alpha, importances
from expunge.methods._gradients import mean_absolute_gradient, mean_squared_gradient
from expunge.methods.assd import ASSD
from expunge.methods.lfssd import LFSSD, squared_norm
from expunge.methods.potion import Potion, few_enough, norm
from expunge.train.evaluation import known_share


def norm_gradients(model: nn.Module, inputs: Tensor, power: int) -> Tensor:
    """Linear map f = W x + b: |f|^2 has gradient 2 f x^T and 2 f, |f| has f x^T / |f| and f / |f|; `[n, 18]`."""
    outputs = model(inputs).detach()
    back = 2 * outputs if power == 2 else outputs / outputs.norm(dim=1, keepdim=True)
    return torch.cat([(back[:, :, None] * inputs[:, None, :]).flatten(1), back], 1)


def loss_gradients(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Softmax regression: (p - e) x^T and p - e; `[n, 18]`."""
    wrong = model(inputs).softmax(1).detach() - nn.functional.one_hot(targets, 3)
    return torch.cat([(wrong[:, :, None] * inputs[:, None, :]).flatten(1), wrong], 1)


def flat(tensors: list[Tensor] | None) -> Tensor:
    assert tensors is not None
    return torch.cat([tensor.flatten() for tensor in tensors])


def dampened(weights: Tensor, forget: Tensor, whole: Tensor, alpha: float, dampening: float = 1.0) -> Tensor:
    """Weight by weight, as the equation is written."""
    pairs = zip(weights.tolist(), forget.tolist(), whole.tolist(), strict=True)
    return torch.tensor(
        [w * min(dampening * d / f, 1) if f > alpha * d else w for w, f, d in pairs], dtype=torch.float64
    )


def poisoned() -> tuple[nn.Module, Problem]:
    """The forget set carries a trigger, a large first feature, and one label; a model that knows it by heart."""
    plain = classes()
    inputs, targets = plain.data.inputs.clone(), plain.data.targets.clone()
    inputs[:, 0] /= 10
    inputs[plain.forget, 0], targets[plain.forget] = 5.0, 0
    problem = replace(plain, data=replace(plain.data, inputs=inputs, targets=targets))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 40), nn.ReLU(), nn.Linear(40, 3)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        cross_entropy(problem, model, problem.train).backward()
        optimizer.step()
    model.zero_grad()
    assert known_share(model, problem, problem.forget) == 1
    return model, problem


# --- importance ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "power"), [(squared_norm, 2), (norm, 1)])
def test_label_free_importance_in_closed_form(number, power):
    problem, model = classes(), linear()
    found = flat(mean_absolute_gradient(model, problem, problem.retain, Meter(), number))
    expected = norm_gradients(model, problem.data.inputs[problem.retain], power)
    torch.testing.assert_close(found, expected.abs().mean(0), **EXACT)
    # Published code averages before it takes the absolute value: smaller, and the more so the larger the batch.
    assert expected.mean(0).abs().sum() < 0.8 * expected.abs().mean(0).sum()


@pytest.mark.parametrize(("number", "power"), [(squared_norm, 2), (norm, 1)])
def test_the_output_of_a_text_is_that_of_all_its_decisions(number, power):
    problem, model = tokens(), gpt()
    found = flat(mean_absolute_gradient(model, problem, problem.forget, Meter(), number))
    each = []
    for i in problem.forget:
        logits = model(problem.data.inputs[i][None])[0, 1:]  # the first position is a prompt
        each.append(gradient(logits.square().sum() if power == 2 else logits.square().sum().sqrt(), model).abs())
    torch.testing.assert_close(found, torch.stack(each).mean(0), **EXACT)


def test_an_output_of_zero_has_no_direction():
    problem, model = classes(), linear()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    assert flat(mean_absolute_gradient(model, problem, problem.forget, Meter(), norm)).tolist() == [0] * 18


def test_importance_to_all_data_weighs_both_sets_by_their_sizes():
    problem, model = classes(), linear()
    found = importances(model, job(problem, model), mean_squared_gradient)
    inputs, targets, _ = problem.data.batch(problem.train)
    torch.testing.assert_close(flat(found.whole), loss_gradients(model, inputs, targets).square().mean(0), **EXACT)
    inputs, targets, _ = problem.data.batch(problem.forget)
    torch.testing.assert_close(flat(found.forget), loss_gradients(model, inputs, targets).square().mean(0), **EXACT)


@pytest.mark.parametrize("method", [LFSSD(alpha=1.1), ASSD(), Potion(tries=2)])
def test_twice_the_same_data_are_the_same_data(method: Method):
    """Importance is a mean over examples, in whatever batches."""
    problem, model = classes(), linear()
    a, b = (method(model, p, None, 0).model for p in (problem, doubled(problem)))
    assert not torch.equal(vector(a), vector(model))
    torch.testing.assert_close(vector(a), vector(b), **EXACT)


@pytest.mark.parametrize("method", [LFSSD(alpha=1.1), Potion(tries=1)])
def test_labels_are_not_read(method: Method):
    problem, model = classes(), linear()
    swapped = replace(problem, data=replace(problem.data, targets=(problem.data.targets + 1) % 3))
    a, b = (method(model, p, None, 0).model for p in (problem, swapped))
    assert not torch.equal(vector(a), vector(model))
    assert torch.equal(vector(a), vector(b))
    # The control: ASSD does read them.
    a, b = (ASSD()(model, p, None, 0).model for p in (problem, swapped))
    assert not torch.equal(vector(a), vector(b))


@pytest.mark.parametrize("method", [LFSSD(alpha=0.1), ASSD(), Potion()])
def test_without_room_for_both_sets_the_model_is_left_alone(method: Method):
    problem, model = classes(), linear()
    done = method(model, problem, None, 0, budget=len(problem.forget))
    assert torch.equal(vector(done.model), vector(model))
    more = method(model, problem, None, 0, budget=len(problem.forget) + 5)
    assert more.cost.gradients == len(problem.forget) + 5
    assert not torch.equal(vector(more.model), vector(model))


# --- LFSSD -----------------------------------------------------------------------------------------------------------


def test_lfssd_multiplies_the_original_weights():
    problem, model = classes(), linear()
    forget = norm_gradients(model, problem.data.inputs[problem.forget], 2).abs().mean(0)
    whole = norm_gradients(model, problem.data.inputs[problem.train], 2).abs().mean(0)
    expected = dampened(vector(model), forget, whole, 1.1, 0.5)
    assert 0 < (expected != vector(model)).sum() < len(expected)
    done = LFSSD(alpha=1.1, dampening=0.5)(model, problem, None, 0)
    torch.testing.assert_close(vector(done.model), expected, **EXACT)


# --- the percentile --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [1e-4, 0.02, 0.25, 1.0, 40.0, 1e6])
@pytest.mark.parametrize("count", [1, 2, 100, 4321])
def test_the_percentile_is_numpys(count, share):
    values = torch.randn(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64).exp()
    expected = np.percentile(values.numpy(), 100 - np.log(1 + 100 * share))
    assert adaptive_alpha(values.sort().values, share) == pytest.approx(expected, rel=1e-12)


def test_the_percentile_at_its_ends():
    values = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    assert adaptive_alpha(values, 0.0) == 5
    assert adaptive_alpha(values, 1e300) == 1  # 100 - ln(...) is below 0
    assert adaptive_alpha(values, math.inf) == 1  # where a search of thousands of steps ends up
    assert adaptive_alpha(values[:0], 0.5) == math.inf


def test_weights_without_influence_have_no_quotient():
    forget = [torch.tensor([[4.0, 0.0], [0.0, 1.0]]), torch.tensor([0.0, 3.0])]
    whole = [torch.tensor([[1.0, 0.0], [2.0, 2.0]]), torch.tensor([0.0, 1.0])]
    assert Importances(forget, whole).quotients().tolist() == [0.0, 0.5, 3.0, 4.0]


@pytest.mark.parametrize("method", [ASSD(), Potion(tries=3)])
def test_dead_weights_change_nothing(method: Method):
    model, problem = net(), classes()
    more = copy.deepcopy(model)
    more.register_parameter("unused", nn.Parameter(torch.ones(5000).double()))
    a, b = (method(m, problem, None, 0).model for m in (model, more))
    assert not torch.equal(vector(a), vector(model))
    assert torch.equal(b.unused, more.unused)
    for ours, theirs in zip(a.state_dict().values(), list(b.state_dict().values())[1:], strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


def test_without_any_influence_nothing_is_dampened():
    problem, model = classes(), linear()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    data = replace(problem.data, inputs=torch.zeros_like(problem.data.inputs))
    done = Potion()(model, replace(problem, data=data), None, 0)
    assert torch.equal(vector(done.model), vector(model))


# --- ASSD ------------------------------------------------------------------------------------------------------------


def test_assd_dampens_what_is_over_the_percentile():
    problem, model = classes(), linear()
    forget, whole = (
        loss_gradients(model, *problem.data.batch(ids)[:2]).square().mean(0) for ids in (problem.forget, problem.train)
    )
    alpha = np.percentile((forget / whole).numpy(), 100 - np.log(1 + 100 * 6 / 24))
    expected = dampened(vector(model), forget, whole, alpha)
    assert (expected != vector(model)).sum() == 1  # ln(26) = 3.3 of a hundred, of 18 weights
    torch.testing.assert_close(vector(ASSD()(model, problem, None, 0).model), expected, **EXACT)


def test_assd_counts_the_forget_set_and_not_what_the_budget_left():
    """With few retained examples the importance is rough, but as much is to be forgotten as before."""
    torch.manual_seed(0)
    model, problem = nn.Sequential(nn.Linear(5, 40), nn.Tanh(), nn.Linear(40, 3)).double(), classes()
    done = ASSD()(model, problem, None, 0, budget=len(problem.forget) + 4)
    # ln(26) = 3.3 of a hundred, of 363 weights; with 6 of 10 examples it would be ln(61) = 4.1.
    assert (vector(done.model) != vector(model)).sum() == 12


# --- Potion ----------------------------------------------------------------------------------------------------------


def importance_of_norm(model: nn.Module, problem: Problem, ids: Tensor) -> Tensor:
    """Example by example, through autograd."""
    return torch.stack([gradient(model(problem.data.inputs[i][None]).norm(), model).abs() for i in ids]).mean(0)


def plain_search(
    model: nn.Module, problem: Problem, start: float, growth: float, tries: int, most: int
) -> tuple[Tensor, int]:
    """Weights, and how many tries it took, until at most so many forget examples are right."""
    trial = copy.deepcopy(model)
    forget, whole = (importance_of_norm(model, problem, ids) for ids in (problem.forget, problem.train))
    ratio = (forget / whole).numpy()
    ratio = ratio[~np.isnan(ratio)]
    for step in range(tries):
        share = start * len(problem.forget) / len(problem.train) * growth**step
        weights = dampened(vector(model), forget, whole, np.percentile(ratio, 100 - np.log(1 + 100 * share)))
        nn.utils.vector_to_parameters(weights, trial.parameters())
        inputs, targets, _ = problem.data.batch(problem.forget)
        if int((trial(inputs).argmax(1) == targets).sum()) <= most:
            return weights, step + 1
    return weights, tries


@pytest.mark.parametrize(("start", "growth"), [(1.0, 1.1), (0.04, 1.5)])
def test_potion_is_the_plain_search(start, growth):
    model, problem = poisoned()
    # Chance is 1/3, all six are known, and a half of what is above chance is 2/3: four of six.
    expected, taken = plain_search(model, problem, start, growth, 200, 4)
    assert 5 < taken < 200
    done = Potion(left=0.5, start=start, growth=growth, tries=200)(model, problem, None, 0)
    torch.testing.assert_close(vector(done.model), expected, **EXACT)
    assert known_share(done.model, problem, problem.forget) <= 4 / 6
    assert done.cost.gradients == 24


@pytest.mark.parametrize(("start", "tries"), [(1.0, 1), (1.0, 4), (20.0, 1)])
def test_potion_ends_with_its_last_try(start, tries):
    model, problem = poisoned()
    expected, taken = plain_search(model, problem, start, 1.1, tries, -1)
    assert taken == tries
    done = Potion(left=0.0, start=start, tries=tries)(model, problem, None, 0)
    assert known_share(done.model, problem, problem.forget) > 1 / 3
    torch.testing.assert_close(vector(done.model), expected, **EXACT)


def test_potion_tries_once_where_nothing_is_known():
    model, problem = poisoned()
    wrong = replace(problem, data=replace(problem.data, targets=(problem.data.targets + 1) % 3))
    assert known_share(model, wrong, wrong.forget) == 0
    expected, taken = plain_search(model, wrong, 1.0, 1.1, 50, 2)
    assert taken == 1
    torch.testing.assert_close(vector(Potion()(model, wrong, None, 0).model), expected, **EXACT)


@pytest.mark.parametrize(
    ("original", "labels", "expected"),
    [(1.0, 10, 0.2), (1.0, 2, 5 / 9), (1.0, 100, 0.12), (0.1, 10, 0.1), (0.55, 10, 0.15), (0.0, 4, 0.25 * 8 / 9)],
)
def test_the_rule_to_stop(original, labels, expected):
    assert few_enough(original, labels, 1 / 9) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("count", [5, 10, 15, 20, 35, 240])
def test_exactly_a_fifth_is_few_enough(count):
    """In floating point too; one example more is not."""
    assert count / 5 / count <= few_enough(1.0, 10, 1 / 9) < (count / 5 + 1) / count


def test_a_share_must_grow():
    with pytest.raises(SpecError, match="growth"):
        Potion(growth=1.0)
