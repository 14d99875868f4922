"""Forget the examples that the model only knows by heart: those of lowest C-score (2505.22310, `high_mem`).

They are what a retrained model gets wrong, so there is something to forget. With random examples there hardly is: the
retrained model gets most of them right too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from expunge.base.part import Count
from expunge.core.case import Recipe
from expunge.core.contracts import Task
from expunge.core.data import Data
from expunge.core.problem import Problem
from expunge.tasks._split import require_fewer, without
from expunge.train.cscore import cscores


@dataclass(frozen=True)
class HardExamples(Task):
    """The `count` training examples of lowest C-score; ties go to the smaller id."""

    measures: ClassVar[bool] = True

    count: Count = 200
    """Examples to forget."""
    nets: Count = 12
    """Nets to compute C-scores from, where the data ship none."""

    def measure(self, data: Data, recipe: Recipe, seed: int) -> Mapping[str, Tensor]:
        """C-scores of the training examples, `[len(data.train)]`: shipped, or computed with the recipe."""
        if data.cscore is not None:
            return {"cscore": data.cscore[data.train]}
        return {"cscore": cscores(recipe, data, self.nets, seed)}

    def __call__(self, data: Data, seed: int, measured: Mapping[str, Tensor]) -> Problem:
        """The problem; the same for every seed, since C-scores belong to the data."""
        require_fewer(self.count, data)
        order = torch.argsort(measured["cscore"], stable=True)
        forget = data.train[order[: self.count]]
        return Problem(data, forget, without(data, forget), data.test)
