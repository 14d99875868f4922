"""Convex problems: what training and retraining must converge to is known, so unlearning has a right answer.

An L2-regularised softmax regression has one optimum, the ridge regression even a closed form. The library's own loop
and recipe have to reach them, and fine-tuning on the retain set, started from the original's optimum, has to reach the
retrained one. Independent oracles: scipy's L-BFGS, and normal equations.
"""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp
from torch import Tensor, nn

from expunge.core.data import Batch, Data
from expunge.core.problem import Problem
from expunge.methods.finetune import Finetune
from expunge.methods.retrain import Retrain
from expunge.train.loop import fit
from expunge.train.optim import make_optimizer
from expunge.train.training import TrainedRecipe, Training

N, D, C, FORGET, DECAY = 60, 3, 3, 12, 0.1

TOLERANCE = {"rtol": 0.0, "atol": 2e-7}
"""Distance of the weights to the optimum. With decay l the objective is l-strongly convex, so that the distance is at
most the gradient's norm over l: L-BFGS stops below 1e-8 / 0.1. Momentum leaves a factor sqrt(0.9) per step: 1e-11."""


@pytest.fixture(scope="module")
def problem() -> Problem:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(N + 10) % C
    inputs = torch.randn(N + 10, D, generator=generator) + torch.eye(C)[targets]
    # Wrong labels on what is to be forgotten, so that with and without it are two models.
    targets[:FORGET] = (targets[:FORGET] + 1) % C
    data = Data(inputs, targets, torch.arange(N), torch.arange(N, N + 10), tuple("abc"))
    return Problem(data, torch.arange(FORGET), torch.arange(FORGET, N), data.test)


def linear(_: Data | None = None) -> nn.Module:
    return nn.Linear(D, C).double()


def optimum(problem: Problem, ids: Tensor) -> np.ndarray:
    """Weights and biases of the regularised softmax regression on these examples, by scipy."""
    x = np.hstack([problem.data.inputs[ids].double().numpy(), np.ones((len(ids), 1))])
    y = np.eye(C)[problem.data.targets[ids].numpy()]

    def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(C, D + 1)
        logits = x @ w.T
        norm = logsumexp(logits, axis=1, keepdims=True)
        slope = (np.exp(logits - norm) - y).T @ x / len(x) + DECAY * w
        return float((norm[:, 0] - (logits * y).sum(1)).mean() + DECAY / 2 * (w**2).sum()), slope.ravel()

    found = minimize(value, np.zeros(C * (D + 1)), jac=True, method="L-BFGS-B", options={"ftol": 0.0, "gtol": 1e-10})
    assert np.linalg.norm(found.jac) < 1e-8
    return found.x.reshape(C, D + 1)


def weights(model: nn.Module) -> np.ndarray:
    assert isinstance(model, nn.Linear)
    return torch.cat([model.weight, model.bias[:, None]], 1).detach().numpy()


FULL_BATCH = {"epochs": 500, "batch_size": N, "optimizer": "sgd", "learning_rate": 0.2, "weight_decay": DECAY}


def recipe(problem: Problem) -> TrainedRecipe:
    return TrainedRecipe(linear, Training(**FULL_BATCH), problem.data)


@pytest.fixture(scope="module")
def original(problem: Problem) -> nn.Module:
    return recipe(problem).fit(linear(), problem.data, problem.train, 0)


def test_the_forget_set_moves_the_optimum(problem: Problem) -> None:
    """Positive control: without a difference between the two optima, reaching either would show nothing."""
    moved = np.abs(optimum(problem, problem.train) - optimum(problem, problem.retain)).max()
    assert moved > 1e5 * TOLERANCE["atol"]


def test_training_reaches_the_optimum(problem: Problem, original: nn.Module) -> None:
    np.testing.assert_allclose(weights(original), optimum(problem, problem.train), **TOLERANCE)


def test_retraining_reaches_the_optimum_without_the_forget_set(problem: Problem, original: nn.Module) -> None:
    done = Retrain()(original, problem, recipe(problem), 1)
    np.testing.assert_allclose(weights(done.model), optimum(problem, problem.retain), **TOLERANCE)


def test_fine_tuning_reaches_the_retrained_model(problem: Problem, original: nn.Module) -> None:
    """On a convex problem fine-tuning *is* exact unlearning, if it is long enough and keeps the regulariser."""
    done = Finetune(**FULL_BATCH)(original, problem, None, 1)
    np.testing.assert_allclose(weights(done.model), optimum(problem, problem.retain), **TOLERANCE)
    # Known wrong: without the regulariser it goes somewhere else.
    loose = Finetune(**{**FULL_BATCH, "weight_decay": 0.0})(original, problem, None, 1)
    assert np.abs(weights(loose.model) - optimum(problem, problem.retain)).max() > 1e-2


def test_the_distance_to_the_retrained_model_shrinks_geometrically(problem: Problem, original: nn.Module) -> None:
    target = optimum(problem, problem.retain)
    gaps = [
        np.abs(weights(Finetune(**{**FULL_BATCH, "epochs": epochs})(original, problem, None, 1).model) - target).max()
        for epochs in (50, 100, 150, 200)
    ]
    # Momentum 0.9 contracts by at most sqrt(0.9) = 0.949 a step asymptotically: 0.07 in 50 steps; 0.3 leaves room for
    # its oscillation.
    assert all(after < 0.3 * before for before, after in itertools.pairwise(gaps))


def test_mini_batches_scatter_about_the_optimum(problem: Problem, original: nn.Module) -> None:
    """With small batches at a constant rate the average over epochs is right, a single state is not."""
    small = {**FULL_BATCH, "batch_size": 12, "epochs": 100, "learning_rate": 0.01}
    ends = [weights(Finetune(**small)(original, problem, None, seed).model) for seed in range(12)]
    target, spread = optimum(problem, problem.retain), np.std(ends, axis=0, ddof=1)
    assert spread.min() > 10 * TOLERANCE["atol"]
    # Bias of a constant rate is of second order in it; five standard errors of 12 seeds and a hundredth leave room.
    assert (np.abs(np.mean(ends, axis=0) - target) < 5 * spread / np.sqrt(12) + 0.01).all()


def test_ridge_regression_has_its_closed_form(problem: Problem) -> None:
    """The loop with a squared loss: (X'X/n + l I)^-1 X'y/n, first on all, then from there on what is retained."""

    def closed(ids: Tensor) -> Tensor:
        x, y = problem.data.inputs[ids].double(), problem.data.targets[ids].double()
        return torch.linalg.solve(x.T @ x / len(x) + DECAY * torch.eye(D, dtype=torch.float64), x.T @ y / len(x))

    model = nn.Linear(D, 1, bias=False).double()

    def half_square(batch: Batch) -> Tensor:
        return (model(batch.inputs.double())[:, 0] - batch.targets).square().mean() / 2

    before = copy.deepcopy(model)
    for ids in (problem.train, problem.retain):
        optimizer = make_optimizer("sgd", list(model.parameters()), 0.1, DECAY)
        result = fit(list(model.parameters()), half_square, [problem.data.batch(ids)] * 500, optimizer)
        # A quadratic: the same contraction as above, from a distance of order 1, by 0.949^500 = 4e-12.
        torch.testing.assert_close(model.weight[0].detach(), closed(ids), rtol=0, atol=1e-10)
        assert result.steps == 500 and not result.exhausted
    assert not torch.allclose(before.weight, model.weight)
