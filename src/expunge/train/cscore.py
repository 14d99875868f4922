"""C-scores: how often a net that did not see an example gets it right (Jiang et al., 2002.03206).

Many nets train on random shares of the training set. An example's score is the share of correct answers among the nets
that did not train on it. A low score means that only a net which saw the example knows it: it is memorised, not
inferred.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.base.seeds import derive
from expunge.core.case import Recipe, train_model
from expunge.core.data import Data
from expunge.core.generators import generator_of
from expunge.train.evaluation import DataWithObjective, known


@dataclass(frozen=True)
class Counts:
    """Per training example, in the order of `data.train`: nets that held it out, and how many of these are right."""

    right: Tensor
    held_out: Tensor

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.right + other.right, self.held_out + other.held_out)

    @property
    def score(self) -> Tensor:
        """C-score `[k]` in [0, 1]; NaN where no net held the example out."""
        return self.right.double() / self.held_out


def count(recipe: Recipe, data: Data, seed: int, share: float = 0.7) -> Counts:
    """Train one net on a random share of the training set and count its right answers on the rest.

    Args:
        recipe: How the net is trained.
        data: Its training ids are split.
        seed: Decides the split and the net.
        share: Share of the training set that the net sees.

    Returns:
        Counts of zeros and ones; add them up over seeds.
    """
    seen = split(data, seed, share)
    return tally(train_model(recipe, data, data.train[seen], derive(seed, "net")), data, seen)


def split(data: Data, seed: int, share: float = 0.7) -> Tensor:
    """Which training examples the net of this seed sees, `[k]` bool."""
    generator = generator_of(seed, "split")
    seen = torch.zeros(len(data.train), dtype=torch.bool)
    seen[torch.randperm(len(seen), generator=generator)[: round(share * len(seen))]] = True
    return seen


def tally(model: nn.Module, data: Data, seen: Tensor) -> Counts:
    """The counts of one net: its right answers on the training examples that it did not see.

    Args:
        model: The trained net.
        data: The data that it was trained on.
        seen: Which training examples it saw, `[k]` bool.
    """
    right = known(model, DataWithObjective(data, data.objective), data.train)
    return Counts((right & ~seen).long(), (~seen).long())


def cscores(recipe: Recipe, data: Data, nets: int, seed: int) -> Tensor:
    """C-scores of the training examples, `[k]` float64, from `nets` nets; deterministic in the seed.

    An example that every net saw (probability 0.7 ** nets) gets the mean score: nothing is known about it.
    """
    total = count(recipe, data, derive(seed, 0))
    for index in range(1, nets):
        total = total + count(recipe, data, derive(seed, index))
    return torch.nan_to_num(total.score, nan=float(total.score.nanmean()))
