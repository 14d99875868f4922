"""Global random state is seeded inside a block and put back after it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import expunge
from expunge.core.seeding import forked


def draws() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.rand()), random.random()


def test_each_generator_follows_the_seed_and_is_put_back() -> None:
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    outside = draws(), draws()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    first = draws()
    with forked(5):
        inside = draws()
    with pytest.raises(ValueError, match="late"), forked(5):
        assert draws() == inside
        raise ValueError("late")
    assert (first, draws()) == outside
    with forked(6):
        assert not set(draws()) & set(inside)


def test_without_a_seed_nothing_moves_inside_either() -> None:
    with forked(4):
        plain = draws()
    with forked(4):
        with forked():
            assert draws() == plain
        assert draws() == plain


def test_a_large_seed_is_taken_by_every_generator() -> None:
    """Seeds of stages have 63 bits, NumPy's have 32."""
    with forked(2**63 - 1):
        first = draws()
    with forked(2**63 - 1):
        assert draws() == first


def test_pytorch_draws_as_it_did_from_a_manual_seed() -> None:
    torch.manual_seed(9)
    plain = torch.rand(3)
    with forked(9):
        assert torch.equal(torch.rand(3), plain)


def test_functions_that_draw_from_numpy_are_deterministic() -> None:
    def build() -> nn.Module:
        module = nn.Linear(4, 2)
        nn.init.constant_(module.weight, float(np.random.rand()))
        return module

    def train(module: nn.Module, dataset: Dataset[Any]) -> None:
        assert list(dataset)  # a training that reads nothing is refused
        with torch.no_grad():
            module.bias.fill_(random.random())

    inputs, targets = torch.randn(12, 4), torch.arange(12) % 2
    parts = {"forget": slice(0, 3), "retain": slice(3, 8), "test": slice(8, 12)}
    sets = {name: (inputs[at], targets[at]) for name, at in parts.items()}
    before = np.random.get_state()[1].copy(), random.getstate()
    references = [expunge.case(build(), recipe=expunge.recipe(build, train), **sets, seed=3).reference for _ in "12"]
    after = np.random.get_state()[1], random.getstate()
    for a, b in zip(*(reference.parameters() for reference in references), strict=True):
        assert torch.equal(a, b)
    assert not np.array_equal(before[0], after[0]) or before[1] == after[1]
