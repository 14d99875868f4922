"""LearnedMask on a model whose place of the forget set is known, and its first step written out."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from _toy import ALL_AT_ONCE, classes, job, net
from torch import nn

from expunge.base.errors import SpecError
from expunge.core.data import Data
from expunge.core.problem import Problem
from expunge.methods.learned_mask import START, LearnedMask, overlap, removed_units
from expunge.train.evaluation import known_share

CLASS = 3
"""The class to forget, which neuron 3 of the first layer alone tells from the others."""


def planted() -> tuple[nn.Sequential, Problem]:
    """Six classes, each with its input, its neuron and its output."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(90) % 6
    inputs = nn.functional.one_hot(targets, 6).double() + 0.05 * torch.randn(90, 6, generator=generator).double()
    train = torch.arange(60)
    data = Data(inputs, targets, train, torch.arange(60, 90), tuple("abcdef"))
    forget = train[targets[train] == CLASS]
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)).double()
    with torch.no_grad():
        for layer, scale in ((model[0], 1.0), (model[2], 6.0)):
            layer.weight.copy_(scale * torch.eye(6))
            layer.bias.zero_()
    return model, Problem(data, forget, train[targets[train] != CLASS], data.test)


METHOD = LearnedMask(epochs=60, batch_size=30, forget_batch_size=10, layers=["0"])


@pytest.mark.parametrize("estimator", ["softmax", "decoupled_st", "decoupled_st_gs", "gumbel_rao", "reinmax"])
def test_the_neuron_of_the_class_is_found_and_no_other(estimator: Any) -> None:
    model, problem = planted()
    masks = []
    for seed in (0, 1):
        student = replace(METHOD, estimator=estimator).apply(copy.deepcopy(model), job(problem, model, seed))
        masks.append(removed_units(model, student))
        assert masks[-1]["0"].tolist() == [unit == CLASS for unit in range(6)] and not masks[-1]["2"].any()
        assert known_share(student, problem, problem.retain) == 1.0
        assert torch.equal(student[2].weight, model[2].weight)
    assert overlap(masks) == 1.0


def _linear(rows: torch.Tensor) -> nn.Module:
    layer = nn.Linear(*reversed(rows.shape)).double()
    layer.weight.data.copy_(rows), layer.bias.data.fill_(0.1)
    return layer


def _conv1d(rows: torch.Tensor) -> nn.Module:
    layer = pytest.importorskip("transformers.pytorch_utils").Conv1D(*rows.shape).double()
    layer.weight.data.copy_(rows.T), layer.bias.data.fill_(0.1)
    return layer


@pytest.mark.parametrize(("kind", "width"), [(_linear, 1), (_linear, 2), (_conv1d, 1), (_conv1d, 2)])
def test_the_head_of_the_class_is_found_and_no_other(kind: Any, width: int) -> None:
    """Each class has a head of so many channels, which the second layer reads."""
    model, problem = planted()
    wide = torch.eye(6).repeat_interleave(width, 0)
    model[0], model[2] = _linear(wide), kind(6.0 / width * wide.T)
    method = replace(METHOD, units="head", heads=6, layers=["2"])
    method.check_model(model)
    student = method.apply(copy.deepcopy(model), job(problem, model))
    assert removed_units(model, student, ["2"], heads=6)["2"].tolist() == [head == CLASS for head in range(6)]
    assert torch.equal(student[2].bias, model[2].bias) and torch.equal(student[0].weight, model[0].weight)
    assert known_share(student, problem, problem.retain) == 1.0


def test_single_weights() -> None:
    model, problem = planted()
    student = replace(METHOD, units="weight").apply(copy.deepcopy(model), job(problem, model))
    changed = (student[0].weight != model[0].weight).nonzero().tolist()
    assert changed == [[CLASS, CLASS]]
    assert student[0].weight.detach()[CLASS, CLASS] == 0


def test_the_first_step_written_out() -> None:
    """Plain gradient descent from `START`: a unit goes whose logit the closed-form gradient lifts above 0."""
    problem, model = classes(), net()
    method = LearnedMask(
        epochs=1, batch_size=ALL_AT_ONCE, forget_batch_size=ALL_AT_ONCE, optimizer="sgd", learning_rate=1e5,
        layers=["0"], forward=0.8, backward=1.5, sparsity=0.1, weight=2.0,
    )  # fmt: skip
    student = method.apply(copy.deepcopy(model), job(problem, model))
    logits = torch.full((7,), START, dtype=torch.float64)
    stays = (1 - method.choice().bernoulli(logits, job(problem, model).generator("mask"))).requires_grad_()

    def predict(ids: torch.Tensor) -> torch.Tensor:
        hidden = (problem.data.inputs[ids] @ (model[0].weight * stays[:, None]).T + model[0].bias * stays).tanh()
        return hidden @ model[2].weight.T + model[2].bias

    kept = nn.functional.cross_entropy(predict(problem.retain), problem.data.targets[problem.retain])
    flat = torch.full((6, 3), 1 / 3, dtype=torch.float64)
    forgotten = nn.functional.kl_div(predict(problem.forget).log_softmax(1), flat, reduction="batchmean")
    (slope,) = torch.autograd.grad(kept + 2.0 * forgotten, stays)
    back, law = torch.sigmoid(logits / 1.5), torch.sigmoid(logits / 0.8)
    gradient = -slope * back * (1 - back) / 1.5 + 0.1 * law * (1 - law) / 0.8 / 7
    removed = logits - 1e5 * gradient > 0
    assert 0 < int(removed.sum()) < 7
    assert removed_units(model, student)["0"].tolist() == removed.tolist()
    assert (student[0].bias[removed] == 0).all()


def test_names_and_frozen_parameters_stay() -> None:
    model, problem = planted()
    model[0].bias.requires_grad_(False)
    with torch.no_grad():
        model[0].bias.fill_(0.01)
    student = METHOD.apply(copy.deepcopy(model), job(problem, model))
    assert list(student.state_dict()) == list(model.state_dict()) and type(student[0]) is nn.Linear
    assert [p.requires_grad for p in student.parameters()] == [True, False, True, True]
    assert torch.equal(student[0].bias, model[0].bias)


def test_a_channel_is_removed_with_its_bias() -> None:
    problem = classes()
    images = replace(problem.data, inputs=problem.data.inputs[:, :4].reshape(40, 1, 2, 2))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 5, 2), nn.Flatten(), nn.Linear(5, 3)).double()
    method = replace(METHOD, epochs=3, sparsity=20.0, learning_rate=5.0, optimizer="sgd", layers=["0"], weight=5.0)
    student = method.apply(copy.deepcopy(model), job(replace(problem, data=images), model))
    removed = removed_units(model, student)["0"]
    outputs = student[0](images.inputs)
    assert (outputs[:, removed] == 0).all() and (outputs[:, ~removed] != 0).any()
    assert torch.equal(student[0].weight[~removed], model[0].weight[~removed])


def test_overlap_counts_common_units() -> None:
    def mask(*units: int) -> dict[str, torch.Tensor]:
        return {"0": torch.tensor([unit in units for unit in range(6)])}

    assert overlap([mask(0, 1), mask(1, 2)]) == pytest.approx(1 / 3)
    assert overlap([mask(), mask()]) == 1.0 and overlap([mask(0), mask()]) == 0.0
    assert overlap([mask(0, 1), mask(0, 1), mask(0)]) == pytest.approx((1 + 0.5 + 0.5) / 3)
    with pytest.raises(SpecError, match="found 1 masks"):
        overlap([mask(0)])


def test_what_is_refused() -> None:
    with pytest.raises(SpecError, match="unknown layer 'missing'"):
        replace(METHOD, layers=["missing"]).check_model(planted()[0])
    with pytest.raises(SpecError, match="st_gs has no backward temperature"):
        LearnedMask(estimator="st_gs", backward=2.0)
    with pytest.raises(SpecError, match="forward: found 0"):
        LearnedMask(forward=0.0)
    with pytest.raises(SpecError, match="estimator: found 'exact'"):
        LearnedMask(estimator="exact")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="heads: found None with units 'head'"):
        LearnedMask(units="head")
    with pytest.raises(SpecError, match="heads: found 2 with units 'neuron'"):
        LearnedMask(heads=2)
    model = planted()[0]
    for method in (replace(METHOD, units="head", heads=4), replace(METHOD, units="head", heads=7)):
        with pytest.raises(SpecError, match=r"heads do not divide the 6 inputs of '0' \(Linear\)"):
            method.check_model(model)
    model[0] = nn.Conv2d(6, 6, 1)
    with pytest.raises(SpecError, match=r"3 heads do not divide the 6 inputs of '0' \(Conv2d\)"):
        replace(METHOD, units="head", heads=3).check_model(model)
