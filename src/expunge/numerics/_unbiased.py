"""Estimators without bias: the score function with a leave-one-out baseline, and the sum over all choices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from expunge.base.errors import SpecError
from expunge.numerics._draws import categorical
from expunge.numerics._estimator import Estimator, Loss, checked

MOST_STATES = 2**16
"""Largest number of combinations of choices that is enumerated."""


@dataclass(frozen=True)
class ReinforceLOO(Estimator):
    """Score function with the other draws' mean as the baseline (Kool et al., 2019).

    Raises:
        SpecError: There are fewer than 2 draws, or the temperature is not positive.
    """

    name: ClassVar[str] = "reinforce_loo"
    fewest_draws: ClassVar[int] = 2

    draws: int = 4
    """Choices, and losses, in each step."""

    def expected(self, logits: Tensor, loss: Loss, generator: torch.Generator) -> Tensor:
        """The mean loss of the draws."""
        scaled = checked(logits) / self.forward
        hard = categorical(scaled.expand(self.draws, *scaled.shape), generator)
        losses = loss(hard)
        value = losses.detach()
        # L minus the mean of the others is (L - mean of all) n / (n - 1).
        advantage = (value - value.mean(0)) * self.draws / (self.draws - 1)
        score = (advantage * _log_probability(scaled, hard)).mean(0)
        return losses.mean(0) + score - score.detach()


@dataclass(frozen=True)
class Exact(Estimator):
    """The mean over all C^N combinations of choices, for oracles and small models."""

    name: ClassVar[str] = "exact"

    def expected(self, logits: Tensor, loss: Loss, generator: torch.Generator | None = None) -> Tensor:
        """The mean loss itself; nothing is drawn."""
        scaled = checked(logits) / self.forward
        states = all_choices(*scaled.shape[-2:], like=scaled)
        states = states.reshape(len(states), *[1] * (scaled.ndim - 2), *scaled.shape[-2:])
        probability = _log_probability(scaled, states).exp()
        return (probability * loss(states.expand(len(states), *scaled.shape))).sum(0)


def all_choices(choices: int, categories: int, *, like: Tensor) -> Tensor:
    """Every combination of one-hot choices, `[C^N, N, C]`.

    Raises:
        SpecError: There are more than `MOST_STATES`.
    """
    if choices * math.log(categories) > math.log(MOST_STATES) + 1e-9:
        raise SpecError(
            f"{categories}^{choices} combinations",
            where="exact",
            allowed=f"at most {MOST_STATES}",
            remedy="take reinforce_loo, which has no bias either, or fewer choices",
        )
    every = torch.cartesian_prod(*[torch.arange(categories)] * choices).reshape(-1, choices)
    return F.one_hot(every, categories).to(like)


def _log_probability(scaled: Tensor, hard: Tensor) -> Tensor:
    return (F.log_softmax(scaled, -1) * hard).sum((-2, -1))
