"""Images with a trigger that means a label, of which only a share was discovered (REM, 2505.17730: high regularity).

Before the original is trained, `count` random training images get a patch of the largest value in the data in their
bottom right corner, and the label `label`. Utility is measured on clean test images. `healed` is the accuracy against
the true labels on all of these images, discovered or not, *with* the trigger. Images are drawn from all classes, so a
tenth of them (of ten classes) truly has the label and counts as healed from the start.

`presence`, which is not in the paper, sets the regularity: with the trigger on fewer of these images, the model has to
learn more of their labels one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from expunge.base.errors import SpecError
from expunge.base.part import Count, Natural, Share
from expunge.core.contracts import Task
from expunge.core.data import Data
from expunge.core.generators import generator_of
from expunge.core.problem import Problem
from expunge.tasks._split import class_index, corrupted_problem, require_classes, require_fewer


@dataclass(frozen=True)
class PoisonTrigger(Task):
    """A patch that means a label, with a discovery rate."""

    cite: ClassVar[str] = "schoepf2025rem"

    count: Count = 200
    """Training images that get the trigger and the label."""
    size: Count = 3
    """Height and width of the patch in pixels."""
    label: Natural | str = 0
    """The class that the trigger means, by number or by name."""
    presence: Share = 1.0
    """Share of these images that get the trigger. All get the label, so 0 means wrong labels without a pattern."""
    discovery: Share = 1.0
    """Share of them that is discovered, at least one image."""

    def __call__(self, data: Data, seed: int, measured: Mapping[str, Tensor]) -> Problem:
        """The problem, on data with triggers; `true_targets` keeps the true labels.

        Raises:
            SpecError: The data are not images, the patch is larger than the images, or there is no such class.
        """
        require_classes(data, "poison_trigger")
        require_fewer(self.count, data)
        label = class_index(self.label, data, "forget.label")
        generator = generator_of(seed, "poison_trigger")
        corrupted = data.train[torch.randperm(len(data.train), generator=generator)[: self.count]]
        wrong = data.relabelled(corrupted, torch.full_like(corrupted, label))
        # A separate order, so that discovery and trigger are independent.
        order = torch.randperm(len(corrupted), generator=generator)
        marked = corrupted[order[: round(self.presence * len(corrupted))]]
        return corrupted_problem(data, self._triggered(wrong, marked), corrupted, self.discovery)

    def _triggered(self, data: Data, ids: Tensor) -> Data:
        shape = list(data.shape)
        if len(shape) != 3 or not data.example.is_floating_point():
            raise SpecError(
                f"inputs have shape {shape}",
                where="forget (poison_trigger)",
                allowed="images [channels, height, width]",
            )
        if self.size > min(shape[1:]):
            raise SpecError(f"found {self.size}", where="forget.size", allowed=f"1 to {min(shape[1:])}")
        return data.with_inputs(ids, partial(_mark, size=self.size, brightness=_brightest(data)))


def _mark(image: Tensor, size: int, brightness: float) -> Tensor:
    marked = image.clone()
    marked[:, -size:, -size:] = brightness
    return marked


def _brightest(data: Data) -> float:
    """The largest value of the images; if they are read lazily, of the first 256 training images."""
    images = data.inputs if isinstance(data.inputs, Tensor) else data.batch(data.train[:256]).inputs
    return float(images.max())
