"""Evaluation: what a measure makes of each example, whatever batches and modes there are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.core.decisions import Decisions, decision_losses, per_example
from expunge.numerics.linops import differentiable
from expunge.testing._settings import PLAIN, REGULARISED, TOKENS, Setting, every_setting
from expunge.train import evaluation
from expunge.train.evaluation import batch_loss, evaluate, known, known_share, losses
from expunge.train.loop import in_order

SETTINGS = {setting.name: setting for setting in every_setting()}


@pytest.mark.parametrize("name", [PLAIN, TOKENS])
def test_values_are_those_of_each_example_alone(name: str) -> None:
    setting = SETTINGS[name]
    model, problem = setting.model().double(), setting.problem
    ids = problem.train.flip(0)
    values = losses(model, problem, ids)
    assert values.dtype == np.float64 and values.shape == (len(ids),)
    for i, value in zip(ids, values, strict=True):
        decisions = problem.objective.decisions(model, problem.data.batch(i[None]))
        assert value == pytest.approx(F.cross_entropy(decisions.logits, decisions.targets).item(), rel=1e-12)


@pytest.mark.parametrize("name", [PLAIN, TOKENS])
def test_small_batches_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = SETTINGS[name]
    model, ids = setting.model(), setting.problem.train
    whole = losses(model, setting.problem, ids), known(model, setting.problem, ids)
    monkeypatch.setattr(evaluation, "in_order", lambda data, ids: in_order(data, ids, 3))
    np.testing.assert_allclose(losses(model, setting.problem, ids), whole[0], rtol=1e-5)
    assert torch.equal(known(model, setting.problem, ids), whole[1])


def test_batch_norm_and_dropout_are_evaluated_and_modes_and_statistics_stay() -> None:
    setting: Setting = SETTINGS[REGULARISED]
    model, problem = setting.model(), setting.problem
    expected = losses(model, problem, problem.train)
    model.train()
    model.get_submodule("norm").eval()
    modes, state = [m.training for m in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}
    assert np.array_equal(losses(model, problem, problem.train), expected)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())


def test_a_measure_may_have_several_numbers_per_example_and_no_graph() -> None:
    setting = SETTINGS[PLAIN]
    model, problem = setting.model(), setting.problem
    seen: list[Decisions] = []

    def logits(decisions: Decisions, size: int) -> Tensor:
        seen.append(decisions)
        return decisions.logits

    assert evaluate(model, problem, problem.test, logits).shape == (len(problem.test), 3)
    assert not seen[0].logits.requires_grad


def test_an_example_is_known_if_all_its_decisions_are_right() -> None:
    setting = SETTINGS[TOKENS]
    model, problem = setting.model(), setting.problem
    truth = []
    for i in problem.train:
        batch = problem.data.batch(i[None])
        decisions = problem.objective.decisions(model, batch)
        truth.append(bool((decisions.logits.argmax(1) == decisions.targets).all()))
    assert known(model, problem, problem.train).tolist() == truth
    assert known_share(model, problem, problem.train) == pytest.approx(np.mean(truth))


@pytest.mark.parametrize("name", [PLAIN, TOKENS])
def test_a_batch_loss_is_the_mean_of_the_examples_and_has_a_graph(name: str) -> None:
    setting = SETTINGS[name]
    model, problem = setting.model(), setting.problem
    batch = problem.data.batch(problem.train)
    loss = batch_loss(problem)(model, batch)
    assert loss.dtype == torch.float32
    decisions = problem.objective.decisions(model, batch)
    each = per_example(decision_losses(decisions), decisions.example, batch.size, mean=True)
    assert loss.item() == pytest.approx(losses(model, problem, problem.train).mean(), rel=1e-5)
    for a, b in zip(*(torch.autograd.grad(v, differentiable(model)) for v in (loss, each.mean())), strict=True):
        assert torch.equal(a, b)


def test_nothing_has_no_values() -> None:
    model: nn.Module = SETTINGS[PLAIN].model()
    problem = SETTINGS[PLAIN].problem
    assert losses(model, problem, problem.corrupted).shape == (0,)
