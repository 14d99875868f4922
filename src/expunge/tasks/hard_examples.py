"""Forget the examples that the model only knows by heart: those of lowest C-score (2505.22310, `high_mem`).

A retrained model gets them wrong, so there is something to forget. With random examples there hardly is: the retrained
model gets most of them right too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from expunge.core.data import Data
from expunge.core.problem import Problem
from expunge.tasks._ranked import Ranked


@dataclass(frozen=True)
class HardExamples(Ranked):
    """The `count` training examples of lowest C-score; ties go to the smaller id."""

    def __call__(self, data: Data, seed: int, measured: Mapping[str, Tensor]) -> Problem:
        """The problem; the same for every seed, since C-scores belong to the data."""
        return self.first(data, measured["cscore"])
