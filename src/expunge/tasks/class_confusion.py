"""Two classes that swap labels, of which only a share was discovered (REM, 2505.17730: medium regularity).

`count` training examples of each class, drawn at random (the paper takes the first ones), get the label of the other
before the original is trained. Utility is measured on the *other* classes, as in the paper. That hides harm to the two
classes, where it is most likely; so clean test examples of the two classes are the hold-out, and a run also reports
their accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from expunge.base.errors import SpecError
from expunge.base.part import Count, Natural, Share
from expunge.core.contracts import Task
from expunge.core.data import Data
from expunge.core.generators import generator_of
from expunge.core.problem import Problem
from expunge.tasks._split import class_index, corrupted_problem, require_classes


@dataclass(frozen=True)
class ClassConfusion(Task):
    """Swapped labels between two classes with a discovery rate."""

    cite: ClassVar[str] = "schoepf2025rem"

    first: Natural | str = 3
    """One class, by number or by name; choose two that are easily confused."""
    second: Natural | str = 5
    """The other class."""
    count: Count = 50
    """Training examples of each class that get the other's label."""
    discovery: Share = 1.0
    """Share of all swapped examples that is discovered, at least one example."""

    def __call__(self, data: Data, seed: int, measured: Mapping[str, Tensor]) -> Problem:
        """The problem, on data with swapped labels; the true ones are kept in `true_targets`.

        Raises:
            SpecError: The two classes are the same, do not exist, are the only ones, or have too few examples.
        """
        require_classes(data, "class_confusion")
        pair = [class_index(getattr(self, name), data, f"forget.{name}") for name in ("first", "second")]
        if pair[0] == pair[1]:
            raise SpecError(
                f"both classes are {data.labels[pair[0]]!r}", where="forget.second", allowed="another class"
            )
        generator = generator_of(seed, "class_confusion")
        chosen = torch.cat([self._draw(data, label, generator) for label in pair])
        corrupted = chosen[torch.randperm(len(chosen), generator=generator)]
        wrong = data.relabelled(corrupted, sum(pair) - data.targets[corrupted])
        swapped = torch.isin(data.targets[data.test], torch.tensor(pair))
        if swapped.all():
            raise SpecError("there is no other class in the test set", where="forget", allowed="three classes or more")
        return corrupted_problem(
            data, wrong, corrupted, self.discovery, test=data.test[~swapped], holdout=data.test[swapped]
        )

    def _draw(self, data: Data, label: int, generator: torch.Generator) -> Tensor:
        ids = data.train[data.targets[data.train] == label]
        if self.count > len(ids):
            raise SpecError(
                f"{self.count} of the {len(ids)} training examples of {data.labels[label]!r}",
                where="forget.count",
                allowed=f"1 to {len(ids)}",
            )
        return ids[torch.randperm(len(ids), generator=generator)[: self.count]]
