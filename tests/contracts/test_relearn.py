"""The relearning attack against the plainest loop that does the same, and its rule for the peak."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from expunge.attacks.relearn import Relearn
from expunge.base.seeds import derive
from expunge.core.case import Case
from expunge.core.data import Data
from expunge.core.problem import Problem


@pytest.fixture
def case() -> Case:
    """Forget and retain set follow one rule, which the model does not know yet: relearning retain teaches both."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 4, generator=generator)
    data = Data(inputs, (inputs[:, 0] > 0).long(), torch.arange(50), torch.arange(50, 60), ("a", "b"))
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double().eval()
    return Case(0, Problem(data, torch.arange(20), torch.arange(20, 50), data.test), model)


def states_by_hand(case: Case, attack: Relearn, seed: int) -> list[nn.Module]:
    """The model before the first step and after each."""
    problem, model = case.problem, copy.deepcopy(case.original)
    ids = torch.cat([problem.retain, problem.exposed[: attack.k]])
    order = torch.Generator().manual_seed(derive(seed, "batches"))
    optimizer = torch.optim.SGD(model.parameters(), lr=attack.learning_rate, momentum=0.9)
    states = [copy.deepcopy(model)]
    for _ in range(attack.epochs):
        chunks = list(ids[torch.randperm(len(ids), generator=order)].split(attack.batch_size))
        if len(chunks[-1]) == 1:
            chunks[-2:] = [torch.cat(chunks[-2:])]
        for chunk in chunks:
            optimizer.zero_grad()
            F.cross_entropy(model(problem.data.inputs[chunk].double()), problem.data.targets[chunk]).backward()
            optimizer.step()
            states.append(copy.deepcopy(model))
    return states


def known(model: nn.Module, problem: Problem) -> list[float]:
    batch = problem.data.batch(problem.unexposed)
    with torch.no_grad():
        return (model(batch.inputs.double()).argmax(1) == batch.targets).double().tolist()


# With 30 + k examples in batches of 8 or 10 the last batch of an epoch is smaller, or one example joins the last batch.
@pytest.mark.parametrize(("k", "size", "per_epoch"), [(0, 8, 4), (1, 10, 3), (1, 8, 4), (3, 8, 4)])
@pytest.mark.parametrize("points", [1, 3, 20])
def test_curve_and_model_are_those_of_the_plainest_loop(
    case: Case, k: int, size: int, per_epoch: int, points: int
) -> None:
    attack = Relearn(k=k, epochs=4, batch_size=size, points=points, optimizer="sgd", learning_rate=0.05)
    done = attack(case.original, case, 3)
    states = states_by_hand(case, attack, 3)
    last = 4 * per_epoch
    assert len(states) == last + 1
    every = max(last // points, 1)
    assert done.curve.steps.tolist() == sorted({0, *range(every, last + 1, every), last})
    expected = [known(states[step], case.problem) for step in done.curve.steps]
    assert done.curve.values.tolist() == expected
    # The peak is the earliest of the highest points after the first; its weights are what is returned.
    means = [sum(value) for value in expected[1:]]
    peak = 1 + means.index(max(means))
    assert done.curve.peak == peak
    for found, wanted in zip(done.model.parameters(), states[done.curve.steps[peak]].parameters(), strict=True):
        assert torch.equal(found, wanted)
    assert done.cost.gradients == 4 * (30 + k)


def test_the_curve_rises_and_ties_at_the_top_go_to_the_first(case: Case) -> None:
    """Positive control for the rule above: there is a peak to find, and more than one point reaches it."""
    done = Relearn(epochs=30, batch_size=8, optimizer="sgd", learning_rate=0.05)(case.original, case, 3)
    means = done.curve.values.mean(1)
    assert means.max() > means[0] + 0.2
    assert (means[1:] == means.max()).sum() > 1 and done.curve.peak < len(means) - 1
