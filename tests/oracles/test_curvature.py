"""Sharpness where a model lies: the dense Hessian's largest eigenvalue, and what symmetries leave of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from _toy import classes, gpt, linear, net, tokens
from test_symmetry import MODELS, PROBLEM, lively
from torch import Tensor, nn
from torch.func import functional_call

from expunge.audits.curvature import Curvature
from expunge.core.case import Case
from expunge.core.problem import Problem
from expunge.methods.symmetry import Symmetry

PRECISE = Curvature(tolerance=1e-10, limit=2000)


def measured(model: nn.Module, problem: Problem, audit: Curvature = PRECISE) -> dict[str, float]:
    return {scores.split: scores.reduced() for scores in audit(model, Case(0, problem, model), 0)}


def dense(model: nn.Module, problem: Problem, ids: Tensor) -> float:
    """Largest eigenvalue of the Hessian by autograd over the flat vector of parameters, the loss written out."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    shapes = [model.get_parameter(name).shape for name in names]
    start = torch.cat([model.get_parameter(name).detach().flatten() for name in names])
    batch = problem.data.batch(ids)

    def loss(flat: Tensor) -> Tensor:
        pieces = [p.view(s) for p, s in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]
        logits = functional_call(model, dict(zip(names, pieces, strict=True)), batch.inputs)
        logs = logits.log_softmax(-1)
        if batch.targets.ndim == 1:
            return -logs[torch.arange(len(ids)), batch.targets].mean()
        # The first token of each sequence is a prompt.
        return -logs[:, 1:].gather(2, batch.targets[:, 1:].unsqueeze(2)).mean()

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        matrix = torch.autograd.functional.hessian(loss, start)
    return float(torch.linalg.eigvalsh(matrix)[-1])


@pytest.mark.parametrize("make", [linear, net])
def test_the_dense_hessian(make: Callable[[int], nn.Module]) -> None:
    model, problem = make(3), classes()
    found = measured(model, problem)
    # Lanczos is stopped at a residual of 1e-10 of the largest eigenvalue; the value's error is of second order in it.
    assert found["retain"] == pytest.approx(dense(model, problem, problem.retain), rel=1e-9)
    assert found["forget"] == pytest.approx(dense(model, problem, problem.unexposed), rel=1e-9)


def test_the_dense_hessian_of_a_language_model() -> None:
    model, problem = gpt(3), tokens()
    found = measured(model, problem)
    assert found["retain"] == pytest.approx(dense(model, problem, problem.retain), rel=1e-9)
    assert found["forget"] == pytest.approx(dense(model, problem, problem.unexposed), rel=1e-9)


def test_logistic_regression_by_hand() -> None:
    """Two classes with weights (0, 0): p (1 - p) = 1/4, and H = (1, -1; -1, 1) / 4 times the inputs' second moment."""
    problem = classes()
    two = replace(problem.data, targets=problem.data.targets % 2, labels=("a", "b"))
    model = nn.Sequential(nn.Linear(5, 2, bias=False)).double()
    nn.init.zeros_(model[0].weight)
    found = measured(model, replace(problem, data=two, objective=None))
    for split, ids in (("retain", problem.retain), ("forget", problem.unexposed)):
        x = problem.data.inputs[ids].numpy()
        expected = 2 / 4 * np.linalg.eigvalsh(x.T @ x / len(x))[-1]
        assert found[split] == pytest.approx(expected, rel=1e-9)


def test_frozen_weights_are_no_direction() -> None:
    model, problem = net(3), classes()
    whole = measured(model, problem)["retain"]
    model[0].requires_grad_(False)
    found = measured(model, problem)["retain"]
    assert found == pytest.approx(dense(model, problem, problem.retain), rel=1e-9)
    # A part of a symmetric matrix reaches no further than the whole.
    assert found < whole


@pytest.mark.parametrize("name", ["mlp", "cnn with group norm", "cnn with batch norm"])
def test_it_sees_factors_and_not_the_order_of_units(name: str) -> None:
    model, audit = lively(MODELS[name]), Curvature(tolerance=1e-6, limit=200)
    before = measured(model, PROBLEM, audit)
    permuted = measured(Symmetry()(model, PROBLEM, None, 0).model, PROBLEM, audit)
    rescaled = measured(Symmetry(permute=False, rescale=1.0)(model, PROBLEM, None, 0).model, PROBLEM, audit)
    for split, value in before.items():
        assert permuted[split] == pytest.approx(value, rel=1e-5)
        assert abs(rescaled[split] / value - 1) > 0.05


def test_too_few_products_give_too_little() -> None:
    model, problem = net(3), classes()
    exact = measured(model, problem)["retain"]
    assert measured(model, problem, Curvature(limit=2, tolerance=1e-9))["retain"] < 0.9 * exact


def test_a_diverged_model_has_none() -> None:
    model = copy.deepcopy(net(3))
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    assert all(np.isnan(value) for value in measured(model, classes()).values())
