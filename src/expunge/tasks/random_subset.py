"""Forget training examples drawn at random: most of the literature does this, and it shows the least.

A retrained model gets most of them right too, so accuracy hardly changes; only audits of training membership see a
difference. If retrained models know the examples as well as the original, the verdict is that the audit had no power.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.base.part import Count
from expunge.core.contracts import Task
from expunge.core.data import Data
from expunge.core.generators import generator_of
from expunge.core.problem import Problem
from expunge.tasks._split import require_fewer, without


@dataclass(frozen=True)
class RandomSubset(Task):
    """A uniform random subset of the training set, different for each seed."""

    count: Count = 200
    """Examples to forget."""

    def __call__(self, data: Data, seed: int, measured: Mapping[str, Tensor]) -> Problem:
        """The problem, on the data as they are."""
        require_fewer(self.count, data)
        generator = generator_of(seed, "random_subset")
        forget = data.train[torch.randperm(len(data.train), generator=generator)[: self.count]]
        return Problem(data, forget, without(data, forget), data.test)
