"""Set the smallest weights to zero, and test whether forgotten knowledge comes back.

Global magnitude pruning: over all matrices, convolutions and embeddings together, the given share of weights with the
smallest absolute values becomes 0. Biases and the scales of norms are kept. The two parts of a complex weight are two
weights, and either may be pruned alone. If a method hides knowledge by small changes of small weights, pruning undoes
these changes first. The original is pruned too, as a control.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from expunge.attacks._unexposed import edited
from expunge.base.part import Share
from expunge.core.case import Attacked, Case
from expunge.core.contracts import Attack
from expunge.numerics.real import as_real, is_continuous


@dataclass(frozen=True)
class Prune(Attack):
    """Global magnitude pruning."""

    control: ClassVar[bool] = True

    share: Share = 0.5
    """Share of the weights that becomes 0."""

    def __call__(self, model: nn.Module, case: Case, seed: int) -> Attacked:
        """A copy without its smallest weights."""
        return edited(model, case, lambda student: prune(student, self.share))


def prune(model: nn.Module, share: float) -> None:
    """Zero exactly `round(share * n)` of the model's `n` weights, in place; of equal weights, the first ones.

    Args:
        model: Its parameters with two dimensions or more are pruned; tied ones count once.
        share: Share of all these weights together.
    """
    weights = [as_real(p.detach()) for p in model.parameters() if p.ndim > 1 and is_continuous(p)]
    if not weights:
        return
    sizes = torch.cat([weight.abs().flatten() for weight in weights])
    keep = torch.ones_like(sizes)
    keep[torch.argsort(sizes, stable=True)[: round(share * len(sizes))]] = 0
    for weight, mask in zip(weights, keep.split([w.numel() for w in weights]), strict=True):
        weight.mul_(mask.view_as(weight))
