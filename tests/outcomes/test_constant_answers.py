"""An answer that does not depend on the input is no knowledge, whatever the forget set's labels are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from _world import FORGET, LABELS, Draw, World, constant, images, mixed_labels, right
from torch import Tensor, nn

from expunge.core.answers import AnswerRates
from expunge.core.decisions import Decisions
from expunge.core.objective import Objective
from expunge.objectives.language_modelling import leading
from expunge.objectives.regression import Regression

ONE = 3
"""The forget set's label: one person, one class."""


def judged(before: Draw, after: Draw | None = None, labels: Tensor | None = None) -> list[str]:
    labels = mixed_labels(ONE) if labels is None else labels
    clean = right(labels, 0.3)
    world = World(
        images(labels),
        {
            "original": {None: right(labels, 1.0)},
            "reference": {None: clean, "relearn": right(labels, 0.35)},
            "model": {None: before, "relearn": after or before},
        },
    )
    return world.verdicts()["model"].flags


def two_answers(a: int, b: int) -> Draw:
    return lambda generator: torch.from_numpy(np.where(generator.random(len(mixed_labels())) < 0.5, a, b))


@pytest.mark.parametrize(
    ("before", "labels"),
    [
        (constant(ONE), None),
        (constant(ONE, 0.97), None),
        (two_answers(ONE, 5), None),
        (two_answers(1, 2), mixed_labels(1)),
        (constant(0), mixed_labels(0)),
    ],
    ids=["one answer", "nearly", "two answers", "two answers, other label", "label 0"],
)
def test_it_is_damage_and_not_knowledge(before: Draw, labels: Tensor | None) -> None:
    assert judged(before, labels=labels) == ["damaged"]


@pytest.mark.parametrize("after", [constant(ONE), constant(ONE, 0.97), two_answers(ONE, 8)])
def test_a_collapse_during_an_attack_is_not_dormant(after: Draw) -> None:
    """The curve of a collapsed net went 0, 100, 0, 100: its peak was taken for knowledge that came back."""
    assert not {"dormant", "incomplete", "erased"} & set(judged(right(mixed_labels(ONE), 0.3), after))


@pytest.mark.parametrize("rate", [0.8, 1.0])
def test_the_instrument_sees_knowledge_of_one_label(rate: float) -> None:
    labels = mixed_labels(ONE)
    assert "incomplete" in judged(right(labels, rate))
    assert judged(right(labels, 0.3), right(labels, rate))[0] == "dormant"
    assert judged(right(labels, 0.3), right(labels, 0.35)) == ["erased"]


def test_rates_are_those_of_counting() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(300, 5, generator=generator), torch.randint(0, 5, (300,), generator=generator)
    questions = torch.randint(0, 2, (300,), generator=generator)
    rates = AnswerRates()
    for part in torch.arange(300).split(70):
        rates.add(Decisions(logits[part], targets[part], part), questions[part])
    answered, probability = rates.rates(targets, questions)
    for i in range(300):
        others = (questions == questions[i]) & (targets != targets[i])
        wanted = (logits[others].argmax(1) == targets[i]).double().mean()
        assert answered[i] == pytest.approx(float(wanted))
        assert probability[i] == pytest.approx(
            float(logits[others].softmax(1)[:, targets[i]].double().mean()), rel=1e-5
        )


def test_an_answer_that_nobody_else_could_give_has_no_baseline() -> None:
    rates = AnswerRates()
    rates.add(Decisions(torch.eye(3)[:1], torch.tensor([0]), torch.tensor([0])), torch.tensor([0]))
    assert rates.rates(torch.tensor([0]), torch.tensor([0]))[0].item() == 0
    assert rates.rates(torch.tensor([0]), torch.tensor([9]))[0].item() == 0


def test_a_text_is_known_up_to_its_first_wrong_token() -> None:
    right_at = [[1, 1, 0, 1], [1, 1, 1], [0, 1], [1]]
    flat = torch.tensor([float(x) for text in right_at for x in text])
    example = torch.tensor([row for row, text in enumerate(right_at) for _ in text])
    wanted = [next((i for i, x in enumerate(t) if not x), len(t)) / len(t) for t in right_at]
    assert leading(flat, example, 4).tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_a_regressor_that_always_says_the_forget_sets_value_explains_nothing(value: float) -> None:
    objective: Objective = Regression(variance=1.0)
    from expunge.core.data import Batch

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.tensor(value))

        def forward(self, x: Tensor) -> Tensor:
            return self.value.expand(len(x))

    x = torch.zeros(6, 1)
    batch = Batch(x, torch.full((6,), value), torch.arange(6))
    unseen = Batch(x, torch.linspace(-1, 1, 6), torch.arange(6))
    model = Constant()
    metric = objective.measure(model, batch)["r_squared"]
    baseline = objective.baseline(model, batch, objective.answers(model, [unseen]))["r_squared"]
    assert (metric == 1).all() and torch.allclose(metric.double(), baseline)
    assert LABELS == 10 and FORGET == 200
