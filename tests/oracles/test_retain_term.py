"""The retain term of pair losses: cross-entropy by default, or KL to the original, written out."""

from __future__ import annotations

import copy

import pytest
import torch
from _toy import ALL_AT_ONCE, EXACT, classes, cross_entropy, divergence, gpt, gradient, job, net, tokens, vector
from torch import Tensor, nn

from expunge import testing
from expunge.base.errors import SpecError
from expunge.core.problem import Problem
from expunge.methods._descent import RetainingDescent
from expunge.methods.connectivity_breaking import ConnectivityBreaking
from expunge.methods.neggrad_plus import NegGradPlus
from expunge.methods.npo import NPO
from expunge.methods.random_relabel import RandomRelabel
from expunge.methods.salun import SalUn
from expunge.train.loop import PairBatch

RATE = 0.1
ONE_STEP = {
    "epochs": 1,
    "optimizer": "sgd",
    "learning_rate": RATE,
    "batch_size": ALL_AT_ONCE,
    "forget_batch_size": ALL_AT_ONCE,
}
WEIGHTED = [
    (NPO, {"alpha": 0.7}, 0.7),
    (NegGradPlus, {"alpha": 0.8}, 0.8),
    (RandomRelabel, {"weight": 0.3}, 1.0),
    (SalUn, {"weight": 0.3}, 1.0),
    (ConnectivityBreaking, {"alpha": 0.3}, 1.0),
]
METHODS = pytest.mark.parametrize(
    ("kind", "settings", "weight"), WEIGHTED, ids=[kind.__name__ for kind, *_ in WEIGHTED]
)
PROBLEMS = pytest.mark.parametrize(("problem", "model"), [(classes(), net()), (tokens(), gpt())], ids=["net", "gpt"])


def moved(model: nn.Module) -> nn.Module:
    """A model somewhere else: at the original itself the divergence and its gradient are zero."""
    copied, generator = copy.deepcopy(model), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=0.3)
    return copied


def logits(problem: Problem, model: nn.Module, ids: Tensor) -> Tensor:
    return problem.objective.decisions(model, problem.data.batch(ids)).logits


@METHODS
@PROBLEMS
def test_kl_to_the_original_takes_the_place_of_cross_entropy(
    kind: type[RetainingDescent], settings: dict[str, float], weight: float, problem: Problem, model: nn.Module
) -> None:
    pair, slopes, values = PairBatch(*(problem.data.batch(ids) for ids in (problem.retain, problem.forget))), [], []
    student = copy.deepcopy(model)
    for term in ("ce", "kl"):
        student.load_state_dict(model.state_dict())
        step = kind(retain=term, **settings).pair_loss(student, job(problem, student))
        # Only now does the student move: a teacher that shares its memory would move along.
        student.load_state_dict(moved(model).state_dict())
        values.append(step(pair))
        slopes.append(gradient(values[-1], student))
    original = logits(problem, model, problem.retain).detach()
    kl = divergence(original, logits(problem, student, problem.retain))
    difference = weight * (kl - cross_entropy(problem, student, problem.retain))
    assert difference.abs() > 1e-2
    torch.testing.assert_close(values[1] - values[0], difference, **EXACT)
    torch.testing.assert_close(slopes[1] - slopes[0], gradient(difference, student), **EXACT)


def test_kl_in_turn_pulls_back_what_the_ascent_has_moved() -> None:
    problem, model = classes(), net()
    done = NegGradPlus(retain="kl", alternate=True, **ONE_STEP)(model, problem, None, 3).model

    student, momentum, slope = copy.deepcopy(model), torch.zeros_like(vector(model)), torch.zeros(())
    for value in (
        lambda: -cross_entropy(problem, student, problem.forget),
        lambda: divergence(logits(problem, model, problem.retain).detach(), logits(problem, student, problem.retain)),
    ):
        slope = gradient(value(), student)
        momentum = 0.9 * momentum + slope
        nn.utils.vector_to_parameters(vector(student) - RATE * momentum, student.parameters())
    assert slope.abs().max() > 1e-4
    torch.testing.assert_close(vector(done), vector(student), **EXACT)


@METHODS
def test_forward_passes_of_the_original_are_no_gradients(
    kind: type[RetainingDescent], settings: dict[str, float], weight: float
) -> None:
    problem, model = classes(), net()
    brief = {"epochs": 2, "batch_size": 8, "forget_batch_size": 4} | settings
    ce, kl = (kind(retain=term, **brief)(model, problem, None, 0).cost.gradients for term in ("ce", "kl"))
    assert ce == kl > 0


@METHODS
def test_keeps_its_contract_with_kl(kind: type[RetainingDescent], settings: dict[str, float], weight: float) -> None:
    testing.check_method(kind(retain="kl", epochs=1))


def test_diagnostics_of_plain_descent_do_not_speak_for_kl() -> None:
    assert NegGradPlus(optimizer="sgd").ascent == pytest.approx(0.05)
    assert NegGradPlus(optimizer="sgd", retain="kl").ascent is None


def test_another_term_is_refused() -> None:
    with pytest.raises(SpecError, match="retain"):
        NPO(retain="mse")  # type: ignore[arg-type]
