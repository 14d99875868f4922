"""Forget training examples drawn at random: what most of the literature does, and what shows the least.

A retrained model gets most of them right too, so that accuracy has hardly anything to forget; only audits that see
training membership itself do. Where retrained models know them as well, the verdict says that there was no power.
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
    """A uniform subset of the training set, another one for each seed."""

    count: Count = 200
    """Examples to forget."""

    def __call__(self, data: Data, seed: int, measured: Mapping[str, Tensor]) -> Problem:
        """The problem, on the data as they are."""
        require_fewer(self.count, data)
        generator = generator_of(seed, "random_subset")
        forget = data.train[torch.randperm(len(data.train), generator=generator)[: self.count]]
        return Problem(data, forget, without(data, forget), data.test)
