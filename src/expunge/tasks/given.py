"""Forget what the data name themselves, as `jsonl` does by a file; the default of a spec without `[forget]`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from expunge.base.errors import SpecError
from expunge.core.contracts import Task
from expunge.core.data import Data
from expunge.core.problem import Problem
from expunge.tasks._split import without


@dataclass(frozen=True)
class Given(Task):
    """The forget set and the hold-out of the data."""

    def __call__(self, data: Data, seed: int, measured: Mapping[str, Tensor]) -> Problem:
        """The problem; the same for every seed.

        Raises:
            SpecError: The data name no forget set.
        """
        if data.forget is None:
            raise SpecError(
                "'forget' is missing, and the data do not say what to forget",
                where="spec",
                remedy='add [forget] with name = "hard_examples"; of the data sets, "jsonl" says what to forget',
            )
        holdout = data.test[:0] if data.holdout is None else data.holdout
        return Problem(data, data.forget, without(data, data.forget), data.test, holdout=holdout)
