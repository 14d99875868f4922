"""Distance between two models' answers: closed forms, zero for one function, and blind to what the weights are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from _toy import EXACT, classes, gpt, linear, tokens
from scipy.special import rel_entr, softmax
from test_symmetry import MODELS, PROBLEM, lively
from torch import nn

from expunge.audits.distance import l2
from expunge.audits.function_distance import FunctionDistance
from expunge.core.case import Case
from expunge.core.problem import Problem
from expunge.evidence.scores import Scores
from expunge.methods.symmetry import Symmetry


def measured(model: nn.Module, original: nn.Module, problem: Problem) -> dict[tuple[str, str], Scores]:
    return {scores.key: scores for scores in FunctionDistance()(model, Case(0, problem, original), 0)}


def constant(*probabilities: float) -> nn.Sequential:
    """Answers every input with these probabilities."""
    model = linear()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor(probabilities, dtype=torch.float64).log())
    return model


def test_constant_answers_by_hand() -> None:
    """From the original to the model, not the other way, which would be 0.8 log 1.6 - 0.2 log 2.5."""
    found = measured(constant(0.8, 0.1, 0.1), constant(0.5, 0.25, 0.25), classes())
    for split in ("forget", "retain", "test"):
        expected = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(2.5)
        np.testing.assert_allclose(found["function_distance", split].values, expected, **EXACT)
    np.testing.assert_allclose(found["total_variation", "forget"].values, 0.3, **EXACT)


def test_linear_softmax_models_by_hand() -> None:
    problem, one, other = classes(), linear(1), linear(2)
    found = measured(other, one, problem)
    for (metric, split), ids in {
        ("function_distance", "forget"): problem.unexposed,
        ("function_distance", "retain"): problem.retain,
        ("function_distance", "test"): problem.test,
        ("total_variation", "forget"): problem.unexposed,
    }.items():
        x = problem.data.inputs[ids].numpy()
        p, q = (softmax(x @ m[0].weight.detach().numpy().T + m[0].bias.detach().numpy(), 1) for m in (one, other))
        expected = rel_entr(p, q).sum(1) if metric == "function_distance" else np.abs(p - q).sum(1) / 2
        scores = found[metric, split]
        np.testing.assert_allclose(scores.values, expected, **EXACT)
        assert scores.ids.tolist() == ids.tolist() and scores.role == "predictor"
        assert scores.unit == ("nats" if metric == "function_distance" else "share")


def test_a_sequence_is_the_mean_over_its_decisions() -> None:
    """Five of six tokens are decisions; the prompt's is none."""
    problem, one, other = tokens(), gpt(1), gpt(2)
    found = measured(other, one, problem)["function_distance", "test"]
    with torch.no_grad():
        p, q = (softmax(m(problem.data.inputs[problem.test]).numpy(), -1)[:, 1:] for m in (one, other))
    np.testing.assert_allclose(found.values, rel_entr(p, q).sum(-1).mean(1), **EXACT)


def test_examples_of_several_batches_meet_their_own_answers() -> None:
    """1,200 examples are three batches: the second must not be compared with the first."""
    problem = _many()
    one, other = linear(1), linear(2)
    found = measured(other, one, problem)["function_distance", "retain"]
    with torch.no_grad():
        p, q = (m(problem.data.inputs[problem.retain]).softmax(1).numpy() for m in (one, other))
    np.testing.assert_allclose(found.values, rel_entr(p, q).sum(1), **EXACT)


def _many() -> Problem:
    few = classes().data
    inputs = torch.randn(1220, 5, generator=torch.Generator().manual_seed(1)).double()
    data = type(few)(inputs, torch.arange(1220) % 3, torch.arange(1210), torch.arange(1210, 1220), few.labels)
    return Problem(data, torch.arange(10), torch.arange(10, 1210), data.test)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_zero_for_one_function_from_other_weights(name: str) -> None:
    model = lively(MODELS[name])
    other = Symmetry(rescale=1.0)(model, PROBLEM, None, 0).model
    assert l2(other, model) > 1
    for scores in measured(other, model, PROBLEM).values():
        # Roundings of double precision, of the probabilities themselves.
        assert scores.values.min() >= 0 and scores.values.max() < 1e-9
    for scores in measured(model, model, PROBLEM).values():
        assert (scores.values == 0).all()


def test_answers_that_exclude_each_other_are_far_and_finite() -> None:
    """Logits of +-800 underflow to probabilities of zero; the logarithm does not."""
    one, other = linear(1), linear(1)
    with torch.no_grad():
        for model, bias in ((one, (800.0, 0, 0)), (other, (0, 800.0, 0))):
            model[0].weight.zero_()
            model[0].bias.copy_(torch.tensor(bias))
    found = measured(other, one, classes())
    assert found["function_distance", "forget"].values == pytest.approx(800, rel=1e-12)
    assert found["total_variation", "forget"].values == pytest.approx(1, rel=1e-12)
