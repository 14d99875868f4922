"""Forget a whole class; utility is measured on the others, and test images of the class are the hold-out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from expunge.base.part import Natural
from expunge.core.contracts import Task
from expunge.core.data import Data
from expunge.core.problem import Problem
from expunge.tasks._split import class_index, require_classes, without


@dataclass(frozen=True)
class WholeClass(Task):
    """All training examples of one class."""

    label: Natural | str = 0
    """The class, by number or by name."""

    def __call__(self, data: Data, seed: int, measured: Mapping[str, Tensor]) -> Problem:
        """The problem.

        Raises:
            SpecError: There is no such class, or it is the only one.
        """
        require_classes(data, "whole_class")
        label = class_index(self.label, data, "forget.label")
        in_class = data.targets == label
        forget, unseen = data.train[in_class[data.train]], data.test[in_class[data.test]]
        return Problem(data, forget, without(data, forget), data.test[~in_class[data.test]], holdout=unseen)
