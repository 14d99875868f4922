"""Forget sets from one end of the training set, ranked by C-score."""

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
class Ranked(Task):
    """Base of the tasks that forget the first examples of an order by C-score."""

    measures: ClassVar[bool] = True

    count: Count = 200
    """Examples to forget."""
    nets: Count = 12
    """Nets to compute C-scores from, if the data ship none."""

    def measure(self, data: Data, recipe: Recipe, seed: int) -> Mapping[str, Tensor]:
        """C-scores of the training examples, `[len(data.train)]`: shipped, or computed with the recipe."""
        if data.cscore is not None:
            return {"cscore": data.cscore[data.train]}
        return {"cscore": cscores(recipe, data, self.nets, seed)}

    def first(self, data: Data, cscore: Tensor, *, descending: bool = False) -> Problem:
        """The problem of forgetting the first `count` examples; ties go to the smaller id, independent of the seed."""
        require_fewer(self.count, data)
        order = torch.argsort(cscore, stable=True, descending=descending)
        forget = data.train[order[: self.count]]
        return Problem(data, forget, without(data, forget), data.test)
