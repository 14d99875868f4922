"""SCRUB, bad teacher and DELETE: whose copy the teacher is, what the divergence is, which checkpoint is chosen."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from _toy import (
    ALL_AT_ONCE,
    EXACT,
    classes,
    cross_entropy,
    divergence,
    gpt,
    gradient,
    job,
    knowing,
    linear,
    net,
    tokens,
    vector,
)
from torch import nn

from expunge.base.errors import SpecError
from expunge.base.seeds import derive
from expunge.methods import _distill, scrub
from expunge.methods._noise import standard_normal
from expunge.methods.bad_teacher import BadTeacher, incompetent
from expunge.methods.delete import DELETE, without_answer
from expunge.methods.noisy_distillation import NoisyDistillation
from expunge.methods.scrub import SCRUB, reference_error, rewind
from expunge.train.optim import cosine

RATE = 0.05
ONE_STEP = {"epochs": 1, "learning_rate": RATE, "optimizer": "sgd", "batch_size": ALL_AT_ONCE}
PROBLEMS = pytest.mark.parametrize("problem, model", [(classes(), net()), (tokens(), gpt())], ids=["net", "gpt"])


def logits(problem, model, ids) -> torch.Tensor:
    return problem.objective.decisions(model, problem.data.batch(ids)).logits


class Shallow(nn.Linear):
    """A module whose idea of a deep copy is a shallow one: the same parameters."""

    def __deepcopy__(self, memo) -> Shallow:
        return copy.copy(self)


@pytest.mark.parametrize(
    "method", [SCRUB(), BadTeacher(), DELETE(), NoisyDistillation()], ids=lambda m: type(m).__name__
)
def test_a_teacher_that_is_its_student_is_refused(method):
    model = nn.Sequential(Shallow(5, 3)).double()
    with pytest.raises(SpecError, match="shares storage"):
        method.apply(model, job(classes(), model))


def test_scrub_moves_away_from_its_teacher_which_a_shared_one_would_prevent(monkeypatch):
    problem, model = classes(), net()
    method = SCRUB(epochs=10, forget_epochs=10, learning_rate=0.05, alpha=0.0, gamma=0.1)

    def moved(student: nn.Module, original: nn.Module) -> float:
        done = method.apply(student, job(problem, original))
        return divergence(*(logits(problem, m, problem.forget).detach() for m in (model, done))).item()

    away, student = moved(copy.deepcopy(model), model), copy.deepcopy(model)
    monkeypatch.setattr(scrub, "teacher_of", lambda original: original)
    # What is left with a shared teacher is fine-tuning; it moves too, by about a fifth as much.
    assert away > 3 * moved(student, student)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_divergence_sums_over_classes_and_scales_with_temperature(temperature):
    generator = torch.Generator().manual_seed(0)
    reference, found = (torch.randn(6, 9, generator=generator).double() for _ in range(2))
    ours = _distill.divergence(reference, found, temperature)
    torch.testing.assert_close(ours, divergence(reference, found, temperature), **EXACT)
    # Nine classes: the mean over classes, as in published code, would be a ninth.
    assert ours > 2 * divergence(reference, found, temperature) / 9


@PROBLEMS
def test_scrub_is_its_equations_over_two_epochs(problem, model):
    settings = ONE_STEP | {"epochs": 2}
    method = SCRUB(forget_epochs=2, forget_batch_size=ALL_AT_ONCE, alpha=0.7, gamma=0.9, temperature=2.0, **settings)
    found = method(model, problem, None, 3).model
    hand, momentum = copy.deepcopy(model), torch.zeros_like(vector(model))
    with torch.no_grad():
        forget, retain = (logits(problem, model, ids) for ids in (problem.forget, problem.retain))

    def disobey() -> torch.Tensor:
        return -divergence(forget, logits(problem, hand, problem.forget), 2.0)

    def obey() -> torch.Tensor:
        kept = divergence(retain, logits(problem, hand, problem.retain), 2.0)
        return 0.7 * kept + 0.9 * cross_entropy(problem, hand, problem.retain)

    for phase in (disobey, obey, disobey, obey):
        momentum = 0.9 * momentum + gradient(phase(), hand)
        start = vector(hand)
        nn.utils.vector_to_parameters(start - RATE * momentum, hand.parameters())
    torch.testing.assert_close(vector(found), vector(hand), **EXACT)


def test_scrub_disobeys_in_the_first_epochs_only():
    problem, model = classes(), net()
    costs = [SCRUB(epochs=4, forget_epochs=n)(model, problem, None, 0).cost.gradients for n in (1, 2, 4, 9)]
    assert costs == [4 * 18 + n * 6 for n in (1, 2, 4, 4)]


# --- Rewinding -------------------------------------------------------------------------------------------------------


def saying(label: int) -> nn.Module:
    """A model that gives every input this label."""
    model = linear()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.eye(3, dtype=torch.float64)[label])
    return model


def test_rewinding_takes_the_state_closest_to_the_reference_and_the_latest_of_equals():
    problem = classes()
    # Targets go 0 1 2 0 1 2: each constant answer is right on a third, of the forget set and of the hold-out.
    all_known, zero, one = knowing(linear(), problem), saying(0), saying(1)
    saved = [copy.deepcopy(model.state_dict()) for model in (all_known, zero, one, all_known)]
    student = saying(0)  # the final model: its error on the hold-out is 2/3
    rewind(student, saved, problem)
    assert torch.equal(vector(student), vector(one))


def test_the_reference_is_the_error_on_the_holdout():
    problem = classes()
    model = net()
    right = (logits(problem, model, problem.holdout).argmax(1) == problem.data.targets[problem.holdout]).double()
    assert reference_error(model, problem) == pytest.approx(1 - right.mean().item(), abs=1e-12)


def test_without_a_holdout_test_examples_are_weighted_to_the_labels_of_the_forget_set():
    whole = classes(holdout=False)
    # Forget set: labels 0 and 1 only, three times as many 0.
    problem = replace(whole, forget=torch.tensor([0, 3, 6, 1]), retain=torch.arange(9, 24))
    assert reference_error(saying(0), problem) == pytest.approx(1 / 4, abs=1e-12)
    assert reference_error(saying(2), problem) == pytest.approx(1.0, abs=1e-12)


def test_rewinding_returns_an_epoch_of_the_run():
    problem, model = classes(), net()
    settings = {"epochs": 5, "forget_epochs": 3, "learning_rate": 0.05}
    found = vector(SCRUB(rewind=True, **settings)(model, problem, None, 0).model)
    per_epoch = [18 * (e + 1) + 6 * min(e + 1, 3) for e in range(5)]
    states = [vector(SCRUB(**settings)(model, problem, None, 0, budget=b).model) for b in per_epoch]
    assert any(torch.equal(found, state) for state in states)


# --- Bad teacher -----------------------------------------------------------------------------------------------------


@PROBLEMS
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_bad_teacher_is_a_mean_of_two_divergences(problem, model, temperature):
    method = BadTeacher(retain_share=1.0, temperature=temperature, **ONE_STEP)
    bad = incompetent(model, derive(3, "teacher"))
    batch = problem.data.batch(problem.train)
    with torch.no_grad():
        wrong, decisions = problem.objective.decisions(bad, batch).logits, problem.objective.decisions(model, batch)
    forget = torch.isin(problem.train[decisions.example], problem.forget)
    reference = torch.where(forget[:, None], wrong, decisions.logits)
    value = divergence(reference, logits(problem, model, problem.train), temperature)
    found = vector(method(model, problem, None, 3).model) - vector(model)
    assert found.abs().max() > 1e-6
    torch.testing.assert_close(found, -RATE * gradient(value, model), **EXACT)


def test_the_incompetent_teacher_is_fresh_where_the_student_may_change():
    model = net()
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    bad = incompetent(model, 0)
    assert torch.equal(bad[0].weight, model[0].weight) and torch.equal(bad[2].bias, model[2].bias)
    assert not torch.equal(bad[2].weight, model[2].weight)
    assert not any(parameter.requires_grad for parameter in bad.parameters())
    assert not bad.training and model[2].weight.requires_grad


def test_bad_teacher_uses_the_share_of_the_retain_set():
    problem = classes()
    cost = BadTeacher(retain_share=0.5, epochs=3)(net(), problem, None, 0).cost.gradients
    assert cost == 3 * (6 + 9)


# --- DELETE ----------------------------------------------------------------------------------------------------------


def test_delete_takes_the_answer_out_and_keeps_the_rest_in_proportion():
    chances = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], dtype=torch.float64)
    found = without_answer(chances.log(), torch.tensor([0, 2])).softmax(1)
    expected = torch.tensor([[0.0, 0.6, 0.4], [0.5, 0.5, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, **EXACT)
    assert found[0, 0] == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_delete_has_a_finite_divergence(dtype):
    reference = without_answer(torch.tensor([[9.0, -2.0, 1.0]], dtype=dtype), torch.tensor([0]))
    student = torch.tensor([[30.0, -2.0, 1.0]], dtype=dtype, requires_grad=True)
    value = _distill.divergence(reference, student)
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all()


@PROBLEMS
def test_delete_is_cross_entropy_with_that_target(problem, model):
    decisions = problem.objective.decisions(model, problem.data.batch(problem.forget))
    target = decisions.logits.detach().softmax(1)
    target[torch.arange(len(target)), decisions.targets] = 0
    target = target / target.sum(1, keepdim=True)
    # KL and cross-entropy to a fixed target have the same gradient.
    value = -(target * logits(problem, model, problem.forget).log_softmax(1)).sum(1).mean()
    found = vector(DELETE(**ONE_STEP)(model, problem, None, 3).model) - vector(model)
    torch.testing.assert_close(found, -RATE * gradient(value, model), **EXACT)


# --- Noise and distillation ------------------------------------------------------------------------------------------


@PROBLEMS
def test_noisy_distillation_is_noise_and_then_a_step_towards_the_original_but_for_its_answers(problem, model):
    weights = {"gamma": 0.7, "alpha": 1.3, "temperature": 1.5, "weight": 0.4, "sigma": 0.05, "final": 0.3}
    method = NoisyDistillation(**ONE_STEP, **weights, forget_batch_size=ALL_AT_ONCE)
    done = method.apply(copy.deepcopy(model), job(problem, model, 3))

    noisy = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(derive(3, "noise"))
    with torch.no_grad():
        for parameter in noisy.parameters():
            parameter.add_(standard_normal(parameter, generator), alpha=0.05)
    retain, forget = (logits(problem, model, ids).detach() for ids in (problem.retain, problem.forget))
    targets = problem.objective.decisions(model, problem.data.batch(problem.forget)).targets
    chances = forget.softmax(1).scatter(1, targets[:, None], 0.0)
    chances = chances / chances.sum(1, keepdim=True)
    now = logits(problem, noisy, problem.forget).log_softmax(1)
    gone = (torch.special.xlogy(chances, chances) - chances * now).sum(1).mean()
    kept = 0.7 * cross_entropy(problem, noisy, problem.retain)
    kept = kept + 1.3 * divergence(retain, logits(problem, noisy, problem.retain), 1.5)
    expected = vector(noisy) - RATE * gradient(kept + 0.4 * gone, noisy)
    torch.testing.assert_close(vector(done), expected, **EXACT)


def test_the_rate_falls_along_a_cosine():
    factor = cosine(10, 0.2)
    assert [factor(0), factor(5), factor(10), factor(50)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
