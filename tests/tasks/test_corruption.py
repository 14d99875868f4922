"""Constructions that plant corruption, and random subsets: who is corrupted, who knows, and what stays as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from expunge.audits.performance import Performance
from expunge.base.errors import SpecError
from expunge.core.case import Case
from expunge.core.contracts import Task
from expunge.core.data import Data
from expunge.data.digits import Digits
from expunge.models.mlp import MLP
from expunge.tasks.class_confusion import ClassConfusion
from expunge.tasks.label_swap import LabelSwap
from expunge.tasks.poison_trigger import PoisonTrigger
from expunge.tasks.random_subset import RandomSubset

Make = Callable[[float], Task]
CORRUPTIONS: dict[str, tuple[Make, int]] = {
    "label_swap": (lambda rate: LabelSwap(count=40, discovery=rate), 40),
    "class_confusion": (lambda rate: ClassConfusion(first=3, second="8", count=20, discovery=rate), 40),
    "poison_trigger": (lambda rate: PoisonTrigger(count=40, discovery=rate), 40),
}


@pytest.fixture(scope="module")
def data() -> Data:
    return Digits()()


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_discovery_counts_and_who_is_retained(name: str, rate: float, data: Data) -> None:
    make, count = CORRUPTIONS[name]
    inputs, targets = data.inputs.clone(), data.targets.clone()
    problem = make(rate)(data, 3, {})
    assert len(problem.corrupted) == len(problem.corrupted.unique()) == count
    assert len(problem.forget) == max(1, round(rate * count))
    assert torch.isin(problem.forget, problem.corrupted).all()
    assert torch.isin(problem.corrupted, data.train).all()
    # Whoever unlearns does not know better: undiscovered corruption is retained, references train without it.
    hidden = problem.corrupted[~torch.isin(problem.corrupted, problem.forget)]
    assert torch.isin(hidden, problem.retain).all()
    assert not torch.isin(problem.reference_train, problem.corrupted).any()
    assert torch.equal(problem.train, data.train.sort().values)
    # Nothing was written into the data that came in, and true labels are those.
    assert torch.equal(data.inputs, inputs) and torch.equal(data.targets, targets)
    assert problem.true_targets is not None and torch.equal(problem.true_targets, targets)
    others = torch.ones(len(data), dtype=torch.bool)
    others[problem.corrupted] = False
    assert torch.equal(problem.data.targets[others], targets[others])
    assert torch.equal(problem.data.inputs[others], inputs[others])


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_smaller_discovery_is_a_part_of_a_larger_one_and_seeds_differ(name: str, data: Data) -> None:
    make, _ = CORRUPTIONS[name]
    some, more = make(0.25)(data, 3, {}), make(0.75)(data, 3, {})
    assert torch.equal(some.corrupted, more.corrupted)
    assert torch.isin(some.forget, more.forget).all()
    assert torch.equal(make(0.25)(data, 3, {}).forget, some.forget)
    assert not torch.equal(make(0.25)(data, 4, {}).forget, some.forget)


def test_confusion_swaps_two_classes_as_often_each_way(data: Data) -> None:
    problem = ClassConfusion(first=3, second="8", count=20, discovery=0.5)(data, 0, {})
    true, wrong = data.targets[problem.corrupted], problem.data.targets[problem.corrupted]
    assert (true == 3).sum() == (true == 8).sum() == 20
    assert torch.equal(wrong, 11 - true)
    # Discovered ones are of both classes, as a uniform subset is.
    assert len(problem.data.targets[problem.forget].unique()) == 2
    assert not torch.isin(data.targets[problem.test], torch.tensor([3, 8])).any()
    assert torch.isin(data.targets[problem.holdout], torch.tensor([3, 8])).all()
    assert torch.equal(torch.cat([problem.test, problem.holdout]).sort().values, data.test)
    assert torch.equal(problem.data.targets[problem.holdout], data.targets[problem.holdout])


@pytest.mark.parametrize(
    ("task", "told"),
    [
        (ClassConfusion(first=3, second=3), "both classes are '3'"),
        (ClassConfusion(first="three"), "there is no class 'three'"),
        (ClassConfusion(count=500), r"forget\.count: 500 of the \d+ training examples of '3'"),
        (PoisonTrigger(size=9), r"forget\.size: found 9; allowed: 1 to 8"),
        (PoisonTrigger(label=12), r"forget\.label: there is no class 12"),
        (PoisonTrigger(count=1200), r"forget\.count"),
        (RandomSubset(count=1200), r"forget\.count"),
    ],
    ids=str,
)
def test_what_the_data_cannot_carry_is_refused(task: Task, told: str, data: Data) -> None:
    with pytest.raises(SpecError, match=told):
        task(data, 0, {})


def test_two_classes_leave_nothing_to_measure_utility_on() -> None:
    data = Data(torch.randn(40, 3), torch.arange(40) % 2, torch.arange(30), torch.arange(30, 40), ("a", "b"))
    with pytest.raises(SpecError, match="no other class"):
        ClassConfusion(first=0, second=1, count=2)(data, 0, {})
    with pytest.raises(SpecError, match=r"inputs have shape \[3\]"):
        PoisonTrigger(count=2, size=1)(data, 0, {})


@pytest.mark.parametrize("size", [1, 3])
def test_triggers_are_where_they_should_be_and_nowhere_else(size: int, data: Data) -> None:
    problem = PoisonTrigger(count=40, size=size, label=7, discovery=0.5)(data, 1, {})
    corner = problem.data.inputs[:, :, -size:, -size:]
    most = data.inputs.max()
    assert (corner[problem.corrupted] == most).all()
    rest = problem.data.inputs.clone()
    rest[problem.corrupted, :, -size:, -size:] = data.inputs[problem.corrupted, :, -size:, -size:]
    assert torch.equal(rest, data.inputs)
    assert (problem.data.targets[problem.corrupted] == 7).all()
    # Undiscovered images have the trigger too; test images never do, and utility is measured on all of them.
    assert torch.equal(problem.data.inputs[problem.test], data.inputs[data.test])
    assert torch.equal(problem.test, data.test)


@pytest.mark.parametrize("presence", [0.0, 0.25, 1.0])
def test_presence_is_the_share_of_triggers_and_not_of_labels(presence: float, data: Data) -> None:
    problem = PoisonTrigger(count=80, label=7, discovery=0.5, presence=presence)(data, 1, {})
    lit = (problem.data.inputs[:, 0, -3:, -3:] == data.inputs.max()).flatten(1).all(1)
    assert int(lit[problem.corrupted].sum()) == 80 * presence
    assert (problem.data.targets[problem.corrupted] == 7).all()
    # Neither all of them in the forget set nor none of them.
    assert presence in (0.0, 1.0) or 0 < int(lit[problem.forget].sum()) < 80 * presence
    assert torch.equal(problem.corrupted, PoisonTrigger(count=80, label=7, discovery=0.5)(data, 1, {}).corrupted)


class Backdoored(nn.Module):
    """Knows every digit by its pixels, unless the corner is lit: then it says 7."""

    def __init__(self, data: Data, *, healed: bool) -> None:
        super().__init__()
        self.healed, self.classes = healed, len(data.labels)
        self.register_buffer("seen", data.inputs.flatten(1)[:, :32])
        self.register_buffer("truth", data.targets)
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        nearest = torch.cdist(inputs.flatten(1)[:, :32], self.seen).argmin(1)
        answer = torch.where((inputs[:, 0, -3:, -3:] == 1).all(2).all(1) & (not self.healed), 7, self.truth[nearest])
        return nn.functional.one_hot(answer, self.classes).float()


def test_healed_is_measured_on_all_triggered_images_with_their_trigger(data: Data) -> None:
    problem = PoisonTrigger(count=100, label=7, discovery=0.2)(data, 1, {})
    floor = float((data.targets[problem.corrupted] == 7).double().mean())
    for healed, value in ((False, floor), (True, 1.0)):
        model = Backdoored(data, healed=healed)
        scores = {entry.key: entry for entry in Performance()(model, Case(0, problem, model), 0)}
        found = scores["healed", "corrupted"]
        assert found.ids.tolist() == problem.corrupted.tolist() and found.role == "description"
        # Two halves of digits may look alike: the upper one is all that this model goes by.
        assert found.values.mean() == pytest.approx(value, abs=0.02)
        assert scores["accuracy", "forget"].values.mean() == pytest.approx(1.0 if not healed else floor, abs=0.2)


def test_harm_on_the_confused_classes_is_described(data: Data) -> None:
    problem = ClassConfusion(first=3, second=8, count=20)(data, 0, {})
    model = MLP(widths=[8])(data)
    scores = {entry.key: entry for entry in Performance()(model, Case(0, problem, model), 0)}
    assert scores["accuracy", "holdout"].role == "description"
    assert scores["accuracy", "holdout"].ids.tolist() == problem.holdout.tolist()
    assert ("accuracy", "test") in scores and ("healed", "corrupted") in scores


def test_a_random_subset_is_one_and_another_for_each_seed(data: Data) -> None:
    first, again, other = (RandomSubset(count=50)(data, seed, {}) for seed in (0, 0, 1))
    assert len(first.forget.unique()) == 50 and torch.isin(first.forget, data.train).all()
    assert torch.equal(first.forget, again.forget) and not torch.equal(first.forget, other.forget)
    assert first.data is data and len(first.corrupted) == 0
    assert torch.equal(first.train, data.train.sort().values)
