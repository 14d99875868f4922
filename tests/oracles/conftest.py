"""Models that learned wrong labels by heart, trained once for all oracles that need something to find."""

from __future__ import annotations

import pytest

from expunge.core.case import Case, train_model
from expunge.data.digits import Digits
from expunge.models.mlp import MLP
from expunge.tasks.label_swap import LabelSwap
from expunge.train.training import TrainedRecipe, Training


@pytest.fixture(scope="session")
def memorised() -> list[Case]:
    """Three seeds of digits, 60 of them with wrong labels that the original knows; references are made already."""
    found, data = [], Digits()()
    for seed in range(3):
        problem = LabelSwap(count=60)(data, seed, {})
        recipe = TrainedRecipe(MLP(widths=[256, 128]), Training(epochs=120, learning_rate=2e-3), problem.data)
        case = Case(seed, problem, train_model(recipe, problem.data, problem.train, seed), recipe)
        _ = case.reference
        found.append(case)
    return found
