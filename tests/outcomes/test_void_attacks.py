"""An attack that destroys every model proves nothing: it accuses nobody, and it clears nobody."""

from __future__ import annotations

import numpy as np
import pytest
from _world import FORGET, RETAIN, TEST, Draw, World, constant, images, mixed_labels, right
from torch import Tensor

LABELS = mixed_labels()
KNOWLEDGE = {"dormant", "incomplete", "over-forgotten"}


def judged(
    reference: Draw, model: Draw, *, before: Draw | None = None, training: list[str] | None = None, **more: Draw
) -> list[str]:
    """Flags of a model that is like a retrained one before the attack, after which models give these answers."""
    clean = right(LABELS, 0.3)
    attacks = {name: (draw, draw) for name, draw in more.items()} | {"relearn": (reference, model)}
    world = World(
        images(LABELS),
        {
            "original": {None: right(LABELS, 1.0)},
            "reference": {None: clean, **{name: draws[0] for name, draws in attacks.items()}},
            "model": {None: before or clean, **{name: draws[1] for name, draws in attacks.items()}},
        },
        training=training,
    )
    return world.verdicts()["model"].flags


def destroyed_in_some_seeds() -> Draw:
    """Chance in half of the trainings, intact in the others."""

    def draw(generator: np.random.Generator) -> Tensor:
        return (constant(0) if generator.random() < 0.6 else right(LABELS, 0.3))(generator)

    return draw


@pytest.mark.parametrize(
    "after",
    [
        right(LABELS, 0.1, 0.1),  # a learning rate of 1: all models at chance
        constant(0),  # quantised to one bit: one answer
        constant(4, 0.9),  # pruned: nearly one answer
        right(LABELS, 0.3, 0.6),  # utility lost, and the forget set as it was
        destroyed_in_some_seeds(),
    ],
    ids=["chance", "one answer", "nearly one answer", "half ruined", "some seeds"],
)
def test_what_all_models_lose_clears_nobody(after: Draw) -> None:
    assert judged(after, after) == ["inconclusive"]


@pytest.mark.parametrize(
    ("reference", "model"),
    [
        (right(LABELS, 0.1, 0.1), right(LABELS, 0.3)),  # the model survives an attack that ruins references
        (constant(0), right(LABELS, 0.35, 0.5)),
        (constant(3), right(LABELS, 0.9, 0.9)),
        (right(LABELS, 0.0, 0.2), right(LABELS, 0.6, 0.7)),
    ],
    ids=["survives", "half", "knows more", "ruined"],
)
def test_what_references_lose_accuses_nobody(reference: Draw, model: Draw) -> None:
    assert not KNOWLEDGE & set(judged(reference, model))


@pytest.mark.parametrize("training", [[], ["other"]], ids=["none trains", "another trains"])
def test_without_an_attack_that_trains_nobody_is_erased(training: list[str]) -> None:
    after = right(LABELS, 0.3)
    assert judged(after, after, training=["relearn"]) == ["erased"]
    assert judged(after, after, training=training) == ["inconclusive"]


def test_an_attack_that_changes_nothing_clears_nobody() -> None:
    """A learning rate of 1e-30: the answers after the attack are the answers before it."""

    def fixed(rate: float) -> Draw:
        return lambda _: right(LABELS, rate)(np.random.default_rng(round(100 * rate)))

    same = fixed(0.3)
    assert judged(same, same, before=same) == ["inconclusive"]


def test_a_void_attack_does_not_hide_what_another_shows() -> None:
    ruin = right(LABELS, 0.1, 0.1)
    assert judged(right(LABELS, 0.3), right(LABELS, 0.9), hot=ruin)[0] == "dormant"


def test_the_instrument_sees() -> None:
    assert judged(right(LABELS, 0.3), right(LABELS, 0.3)) == ["erased"]
    assert judged(right(LABELS, 0.3), right(LABELS, 0.9))[0] == "dormant"
    assert len(LABELS) == FORGET + RETAIN + TEST
