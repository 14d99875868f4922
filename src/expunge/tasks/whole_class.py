"""Forget a whole class; utility is measured on the others, and test images of the class are the hold-out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from expunge.base.errors import SpecError
from expunge.base.part import Natural
from expunge.core.contracts import Task
from expunge.core.data import Data
from expunge.core.problem import Problem
from expunge.tasks._split import require_classes, without


@dataclass(frozen=True)
class WholeClass(Task):
    """All training examples of one class."""

    label: Natural | str = 0
    """The class, by number or by what it means."""

    def __call__(self, data: Data, seed: int, measured: Mapping[str, Tensor]) -> Problem:
        """The problem.

        Raises:
            SpecError: There is no such class, or it is the only one.
        """
        require_classes(data, "whole_class")
        label = self._index(data)
        is_it = data.targets == label
        forget, unseen = data.train[is_it[data.train]], data.test[is_it[data.test]]
        return Problem(data, forget, without(data, forget), data.test[~is_it[data.test]], holdout=unseen)

    def _index(self, data: Data) -> int:
        if isinstance(self.label, str) and self.label in data.labels:
            return data.labels.index(self.label)
        if isinstance(self.label, int) and self.label < len(data.labels):
            return self.label
        numbered = ", ".join(f"{i} {name}" for i, name in enumerate(data.labels))
        raise SpecError(f"there is no class {self.label!r}", where="forget.label", allowed=numbered)
