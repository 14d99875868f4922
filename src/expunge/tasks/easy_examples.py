"""Forget the examples that any model knows: those of highest C-score (2505.22310, the control `low_mem`).

A retrained model gets them right too. There is nothing to forget, and an audit that finds something is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from expunge.core.data import Data
from expunge.core.problem import Problem
from expunge.tasks._ranked import Ranked


@dataclass(frozen=True)
class EasyExamples(Ranked):
    """The `count` training examples of highest C-score; ties go to the smaller id."""

    def __call__(self, data: Data, seed: int, measured: Mapping[str, Tensor]) -> Problem:
        """The problem; the same for every seed, since C-scores belong to the data."""
        return self.first(data, measured["cscore"], descending=True)
