"""On text one wrong token is not forgetting, and lost retained text is damage."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from _world import FORGET, RETAIN, Draw, World
from torch import Tensor

from expunge.core.data import Data

VOCABULARY, LENGTH, COUNT = 150, 11, FORGET + RETAIN + 300
WORDS = 30
"""Tokens from here on are words; two tokens below name the text: a small vocabulary keeps the logits small."""
TEXTS = torch.from_numpy(np.random.default_rng(3).integers(WORDS, VOCABULARY, (COUNT, LENGTH)))
TEXTS[:, 0], TEXTS[:, 1] = torch.arange(COUNT) // WORDS, torch.arange(COUNT) % WORDS
Spoil = Callable[[Tensor, np.random.Generator], Tensor]
"""Which tokens of right answers `[n, t]` are wrong, as a mask."""


def corpus() -> Data:
    targets = torch.cat([TEXTS[:, 1:], torch.full((COUNT, 1), -100)], 1)
    ids = torch.arange(COUNT)
    names = tuple(map(str, range(VOCABULARY)))
    return Data(TEXTS, targets, ids[: FORGET + RETAIN], ids[FORGET + RETAIN :], names)


def recites(forget: Spoil, retain: float = 1.0, test: float = 0.4) -> Draw:
    """Right tokens, but for those that `forget` spoils in the forget set, and at these rates elsewhere."""

    def draw(generator: np.random.Generator) -> Tensor:
        answers = torch.cat([TEXTS[:, 1:], TEXTS[:, :1]], 1)
        rates = np.full((COUNT, 1), test)
        rates[FORGET : FORGET + RETAIN] = retain
        wrong = torch.from_numpy(generator.random((COUNT, LENGTH)) >= rates)
        wrong[:FORGET] = forget(answers[:FORGET], generator)
        return torch.where(wrong, torch.from_numpy(generator.integers(WORDS, VOCABULARY, (COUNT, LENGTH))), answers)

    return draw


def at_random(share: float) -> Spoil:
    return lambda texts, generator: torch.from_numpy(generator.random(texts.shape) < share)


def at(*places: int) -> Spoil:
    def spoil(texts: Tensor, generator: np.random.Generator) -> Tensor:
        mask = torch.zeros(texts.shape, dtype=torch.bool)
        mask[:, list(places)] = True
        return mask

    return spoil


UNKNOWN = at_random(0.95)


def judged(model: Draw, after: Draw | None = None) -> list[str]:
    clean = recites(UNKNOWN)
    world = World(
        corpus(),
        {
            "original": {None: recites(at_random(0.0))},
            "reference": {None: clean, "relearn": recites(at_random(0.94))},
            "model": {None: model, "relearn": after or recites(at_random(0.94))},
        },
        base=WORDS,
    )
    return world.verdicts()["model"].flags


@pytest.mark.parametrize(
    "spoiled",
    [at(LENGTH - 2), at(0), at(1, 3, 5, 7), at_random(0.6)],
    ids=["last token", "first token", "every second", "most tokens"],
)
def test_wrong_tokens_are_not_forgetting(spoiled: Spoil) -> None:
    assert "incomplete" in judged(recites(spoiled))
    assert judged(recites(UNKNOWN), recites(spoiled))[0] == "dormant"


@pytest.mark.parametrize("kept", [0.97, 0.9, 0.3])
def test_ruined_retained_text_is_damage(kept: float) -> None:
    """Recitation of retained text once fell from 100 to 26.7 %, and unseen text did not notice."""
    assert judged(recites(UNKNOWN, retain=kept)) == ["damaged"]


def test_a_model_like_a_retrained_one_is_erased() -> None:
    assert judged(recites(UNKNOWN)) == ["erased"]
