"""Methods against what they say of themselves: distributions, which examples they touch, and single steps by hand."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.base.errors import MissingError, RunError, SpecError
from expunge.base.seeds import derive
from expunge.core.case import Meter, train_model
from expunge.core.data import IGNORE, Batch, Data
from expunge.core.method import Method
from expunge.core.modules import state_digest
from expunge.core.problem import Problem
from expunge.methods.finetune import Finetune
from expunge.methods.npo import NPO
from expunge.methods.random_relabel import RandomRelabel
from expunge.methods.retrain import Retrain
from expunge.methods.weight_distortion import WeightDistortion
from expunge.models.mlp import MLP
from expunge.objectives.classification import Classification
from expunge.objectives.language_modelling import LanguageModelling
from expunge.train.training import TrainedRecipe, Training

N, FORGET = 40, 10


class Recording(Data):
    """Data that note which examples are asked for."""

    def batch(self, ids: Tensor) -> Batch:
        asked.append(ids.tolist())
        return super().batch(ids)


asked: list[list[int]] = []


@pytest.fixture
def problem() -> Problem:
    asked.clear()
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(N + 10, 5, generator=generator), torch.arange(N + 10) % 4
    data = Recording(inputs, targets, torch.arange(N), torch.arange(N, N + 10), ("a", "b", "c", "d"))
    return Problem(data, torch.arange(FORGET), torch.arange(FORGET, N), data.test)


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).double().eval()


# --- Random relabelling ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_a_relabelled_target_is_wrong_and_uniform(classes: int) -> None:
    n, generator = 20_000, torch.Generator().manual_seed(0)
    targets = torch.arange(n) % classes
    batch = Batch(torch.zeros(n, 1), targets, torch.arange(n))
    drawn = Classification(classes=classes).relabel(batch, generator).targets
    assert torch.equal(batch.targets, torch.arange(n) % classes)
    assert (drawn != targets).all() and drawn.min() >= 0 and drawn.max() < classes
    counts = torch.zeros(classes, classes).index_put((targets, drawn), torch.ones(n), accumulate=True)
    wrong = counts[~torch.eye(classes, dtype=torch.bool)].reshape(classes, classes - 1)
    if classes > 2:
        # Chi-square for each right class; with a fixed seed a level of 1e-3 over 10 classes fails by chance once in 100.
        p = stats.chisquare(wrong.numpy(), axis=1).pvalue
        assert (p > 1e-3).all()


def test_a_relabelled_token_is_wrong_where_there_is_a_decision_and_nowhere_else() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, 7, (500, 8), generator=generator)
    targets[:, :3] = IGNORE
    batch = Batch(torch.zeros(500, 8).long(), targets, torch.arange(500))
    drawn = LanguageModelling(vocabulary=7).relabel(batch, generator).targets
    assert (drawn[:, :3] == IGNORE).all()
    assert (drawn[:, 3:] != targets[:, 3:]).all() and drawn[:, 3:].min() >= 0 and drawn[:, 3:].max() < 7
    shift = (drawn[:, 3:] - targets[:, 3:]) % 7
    assert stats.chisquare(torch.bincount(shift.flatten(), minlength=7)[1:].numpy()).pvalue > 1e-3


def test_one_step_of_random_relabelling(problem: Problem, model: nn.Module) -> None:
    """One batch holds all of retain and forget: the step is plain gradient descent on the two losses."""
    weight, rate, seed = 0.7, 0.1, 3
    method = RandomRelabel(
        epochs=1, batch_size=N, forget_batch_size=FORGET, weight=weight, optimizer="sgd", learning_rate=rate
    )
    found = method(model, problem, None, seed).model
    order = torch.Generator().manual_seed(derive(seed, "batches"))
    problem.retain[torch.randperm(N - FORGET, generator=order)]
    forget = problem.data.batch(problem.forget[torch.randperm(FORGET, generator=order)])
    wrong = problem.objective.relabel(forget, torch.Generator().manual_seed(derive(seed, "labels"))).targets
    retain = problem.data.batch(problem.retain)
    value = F.cross_entropy(model(retain.inputs.double()), retain.targets)
    value = value + weight * F.cross_entropy(model(forget.inputs.double()), wrong)
    for (name, after), before, gradient in zip(
        found.named_parameters(),
        model.parameters(),
        torch.autograd.grad(value, list(model.parameters())),
        strict=True,
    ):
        # The sum over a batch in another order: a few roundings.
        torch.testing.assert_close(after, before - rate * gradient, rtol=1e-12, atol=1e-14, msg=name)


# --- Weight distortion -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.5])
def test_the_noise_has_its_standard_deviation(problem: Problem, sigma: float) -> None:
    """With a rate that moves nothing, what is left is the noise: N(0, sigma^2), independent between parameters."""
    model = nn.Sequential(nn.Linear(5, 3000), nn.ReLU(), nn.Linear(3000, 4)).double()
    method = WeightDistortion(sigma=sigma, epochs=1, batch_size=N, optimizer="sgd", learning_rate=1e-30)
    after = method(model, problem, None, 1).model
    noise = [(a - b).detach() for a, b in zip(after.parameters(), model.parameters(), strict=True)]
    pooled = torch.cat([n.flatten() for n in noise])
    n = len(pooled)
    # n s^2 / sigma^2 is chi-square with n degrees of freedom: four standard errors of s, and of the mean.
    assert abs(float(pooled.square().mean().sqrt()) / sigma - 1) < 4 / math.sqrt(2 * n)
    assert abs(float(pooled.mean())) < 4 * sigma / math.sqrt(n)
    assert stats.kstest((pooled / sigma).numpy(), "norm").pvalue > 1e-3
    first, second = noise[0].flatten()[:12_000], noise[2].flatten()[:12_000]
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 4 / math.sqrt(12_000)


def test_the_noise_is_the_same_in_single_precision(problem: Problem, model: nn.Module) -> None:
    method = WeightDistortion(sigma=0.1, epochs=1, batch_size=N, optimizer="sgd", learning_rate=1e-30)
    double = method(model, problem, None, 1).model
    single = method(copy.deepcopy(model).float(), problem, None, 1).model
    for a, b in zip(double.parameters(), single.parameters(), strict=True):
        # Weights of order 1 rounded to single precision, twice.
        torch.testing.assert_close(b.double(), a, rtol=0, atol=3e-7)


def test_frozen_weights_get_no_noise(problem: Problem, model: nn.Module) -> None:
    model[0].requires_grad_(False)
    after = WeightDistortion(epochs=1)(model, problem, None, 1).model
    assert torch.equal(after[0].weight, model[0].weight)
    assert not torch.equal(after[2].weight, model[2].weight)


# --- Fine-tuning, NPO, retraining ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [Finetune(epochs=3), WeightDistortion(epochs=3)], ids=["finetune", "distortion"])
def test_what_only_repairs_never_sees_the_forget_set(method: Method, problem: Problem, model: nn.Module) -> None:
    done = method(model, problem, None, 0)
    seen = [example for batch in asked for example in batch]
    assert sorted(seen) == sorted(3 * problem.retain.tolist())
    assert done.cost.gradients == 3 * (N - FORGET)


def test_every_step_of_a_paired_method_sees_both_sets(problem: Problem, model: nn.Module) -> None:
    done = NPO(epochs=2, batch_size=8, forget_batch_size=4)(model, problem, None, 0)
    forget, retain = set(problem.forget.tolist()), set(problem.retain.tolist())
    kinds = ["forget" if set(batch) <= forget else "retain" for batch in asked if set(batch) <= forget | retain]
    steps = 2 * math.ceil((N - FORGET) / 8)
    assert len(kinds) == len(asked) == 2 * steps and kinds == ["retain", "forget"] * steps
    cycle = [example for batch in asked[1::2] for example in batch]
    # 4 + 4 + 2 make a pass over the forget set; each pass is a new order of all of it.
    assert all(set(cycle[i : i + FORGET]) == forget for i in range(0, 2 * FORGET, FORGET))
    assert done.cost.gradients == sum(len(batch) for batch in asked)


@pytest.mark.parametrize("name", ["finetune", "npo", "random_relabel"])
def test_batches_of_one_are_trained_on(name: str, problem: Problem, model: nn.Module) -> None:
    pair = {"forget_batch_size": 1}
    made = {
        "finetune": lambda: Finetune(epochs=1, batch_size=1),
        "npo": lambda: NPO(epochs=1, batch_size=1, **pair),
        "random_relabel": lambda: RandomRelabel(epochs=1, batch_size=1, **pair),
    }[name]()
    done = made(model, problem, None, 0)
    assert done.cost.gradients == (N - FORGET) * (1 if name == "finetune" else 2)
    assert not torch.equal(done.model[0].weight, model[0].weight)


def test_npo_lowers_the_likelihood_of_the_forget_set_only(problem: Problem) -> None:
    """The forget set ends worse than by chance (log 4 nats), the retain set stays better."""
    recipe = TrainedRecipe(MLP(widths=[64]), Training(epochs=100, learning_rate=1e-2), problem.data)
    known = train_model(recipe, problem.data, problem.train, 0)
    after = NPO(epochs=60, learning_rate=3e-3)(known, problem, None, 0).model

    def mean_loss(net: nn.Module, ids: Tensor) -> float:
        batch = problem.data.batch(ids)
        with torch.no_grad():
            return float(F.cross_entropy(net(batch.inputs), batch.targets))

    assert mean_loss(known, problem.forget) < 0.3 and mean_loss(after, problem.forget) > 2
    assert mean_loss(after, problem.retain) < 1 < math.log(4)


def test_retraining_is_training_anew_with_another_seed_than_the_reference(problem: Problem) -> None:
    recipe, seed = TrainedRecipe(MLP(widths=[6], dropout=0.2), Training(epochs=3), problem.data), 5
    found = Retrain()(recipe.build(0), problem, recipe, seed)
    reference = train_model(recipe, problem.data, problem.reference_train, seed)
    assert state_digest(found.model) != state_digest(reference)
    assert {e for batch in asked for e in batch} == set(problem.retain.tolist())
    assert found.cost.gradients == 3 * (N - FORGET)
    # It starts from the initial weights of its own seed, whatever model it is given.
    other = Retrain()(recipe.build(1), problem, recipe, seed)
    assert state_digest(found.model) == state_digest(other.model)


def test_retraining_keeps_corruption_that_was_not_discovered(problem: Problem) -> None:
    """A method knows what was discovered; the reference is trained without all of it."""
    corrupted = replace(problem, corrupted=torch.arange(FORGET + 5))
    recipe = TrainedRecipe(MLP(widths=[6]), Training(epochs=1), problem.data)
    asked.clear()
    Retrain()(recipe.build(0), corrupted, recipe, 0)
    assert {e for batch in asked for e in batch} == set(range(FORGET, N))
    assert corrupted.reference_train.tolist() == list(range(FORGET + 5, N))


# --- What a call of any method does ----------------------------------------------------------------------------------


def test_a_budget_ends_before_the_step_that_would_exceed_it(problem: Problem, model: nn.Module) -> None:
    method = Finetune(epochs=2, batch_size=8)
    # 30 retain examples: steps of 8, 8, 8, 6, and again.
    spent = [method(model, problem, None, 0, budget).cost.gradients for budget in (1, 8, 15, 16, 30, 37, 60, 1000)]
    assert spent == [0, 8, 8, 16, 30, 30, 60, 60]
    short, long = (method(model, problem, None, 0, budget).model for budget in (30, None))
    once = replace(method, epochs=1)(model, problem, None, 0).model
    assert state_digest(short) == state_digest(once) != state_digest(long)


def test_unmet_needs_are_refused_before_anything_is_done(problem: Problem, model: nn.Module) -> None:
    with pytest.raises(MissingError, match="needs recipe"):
        Retrain()(model, problem, None, 0)
    assert not asked


def test_a_model_without_trainable_parameters_is_refused(problem: Problem, model: nn.Module) -> None:
    with pytest.raises(MissingError, match="every parameter is frozen"):
        Finetune()(model.requires_grad_(False), problem, None, 0)


def test_divergence_is_reported_with_its_step(problem: Problem, model: nn.Module) -> None:
    with pytest.raises(RunError, match=r"not finite at step \d+ with learning rate 1e\+308"):
        Finetune(optimizer="sgd", learning_rate=1e308)(model, problem, None, 0)


@pytest.mark.parametrize(
    "settings", [{"epochs": 0}, {"learning_rate": 0.0}, {"learning_rate": "fast"}, {"optimizer": "lion"}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(SpecError, match=next(iter(settings))):
        Finetune(**settings)


def test_a_meter_is_a_limit() -> None:
    meter = Meter(10)
    assert meter.affords(10) and not meter.affords(11)
    meter.charge(4)
    assert meter.affords(6) and not meter.affords(7) and Meter().affords(10**12)
