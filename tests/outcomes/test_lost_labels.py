"""A label can vanish without a visible change of the mean: utility has its worst label."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from _world import FORGET, LABELS, RETAIN, Draw, World, images, mixed_labels, right
from torch import Tensor


def rare(label: int, count: int = 60) -> Tensor:
    """Labels of which one is rare in the test set, as in natural imbalance."""
    labels = mixed_labels()
    test = torch.arange(FORGET + RETAIN, len(labels))
    own = test[labels[test] == label]
    labels[own[count:]] = (label + 1) % LABELS
    return labels


def judged(labels: Tensor, before: Draw, after: Draw | None = None) -> list[str]:
    clean = right(labels, 0.3, 0.95)
    world = World(
        images(labels),
        {
            "original": {None: right(labels, 1.0, 0.95)},
            "reference": {None: clean, "relearn": right(labels, 0.35, 0.95)},
            "model": {None: before, "relearn": after or right(labels, 0.35, 0.95)},
        },
        seeds=5,
    )
    return world.verdicts()["model"].flags


def swapped(labels: Tensor, a: int, b: int) -> Draw:
    def draw(generator: np.random.Generator) -> Tensor:
        answers = right(labels, 0.3, 0.95)(generator).clone()
        test = torch.arange(len(labels)) >= FORGET
        was_a, was_b = (answers == a) & test, (answers == b) & test
        answers[was_a], answers[was_b] = b, a
        return answers

    return draw


@pytest.mark.parametrize("count", [20, 60])
@pytest.mark.parametrize("kept", [0.0, 0.3], ids=["lost", "mostly lost"])
def test_a_rare_label_that_is_lost_is_damage(count: int, kept: float) -> None:
    """A logit at -50: 0 of 60 right, and 1.6 points of the mean where most tests allow 2."""
    labels = rare(4, count)
    assert judged(labels, right(labels, 0.3, 0.95, {4: kept})) == ["damaged"]


@pytest.mark.parametrize("pair", [(0, 1), (2, 9)])
def test_swapped_labels_are_damage(pair: tuple[int, int]) -> None:
    labels = mixed_labels()
    assert "damaged" in judged(labels, swapped(labels, *pair))


@pytest.mark.parametrize("label", [0, 5])
def test_a_label_lost_after_a_valid_attack_is_never_erased(label: int) -> None:
    labels = rare(label)
    lost = right(labels, 0.35, 0.95, {label: 0.0})
    assert judged(labels, right(labels, 0.3, 0.95), lost) == ["inconclusive"]


@pytest.mark.parametrize("seed", range(3))
def test_a_model_that_lost_nothing_is_erased(seed: int) -> None:
    labels = rare(4, 60 + seed)
    assert judged(labels, right(labels, 0.3, 0.95)) == ["erased"]
