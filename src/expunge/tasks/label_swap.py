"""Wrong labels, of which only a share was discovered (REM, 2505.17730: the corruption of low regularity).

`count` random training examples get a uniformly drawn wrong label before the original is trained. The discovered share
of them, `discovery`, is the forget set; the rest stays in the retain set. References train without any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from expunge.base.part import Count, Share
from expunge.core.contracts import Task
from expunge.core.data import Data
from expunge.core.generators import generator_of
from expunge.core.problem import Problem
from expunge.tasks._split import corrupted_problem, require_classes, require_fewer


@dataclass(frozen=True)
class LabelSwap(Task):
    """Random wrong labels with a discovery rate."""

    cite: ClassVar[str] = "schoepf2025rem"

    count: Count = 200
    """Examples that get a wrong label."""
    discovery: Share = 1.0
    """Share of them that is discovered, at least one example."""

    def __call__(self, data: Data, seed: int, measured: Mapping[str, Tensor]) -> Problem:
        """The problem, on data with the wrong labels; `true_targets` keeps the true ones."""
        require_classes(data, "label_swap")
        require_fewer(self.count, data)
        generator = generator_of(seed, "label_swap")
        corrupted = data.train[torch.randperm(len(data.train), generator=generator)[: self.count]]
        shift = torch.randint(1, len(data.labels), (self.count,), generator=generator)
        wrong = data.relabelled(corrupted, (data.targets[corrupted] + shift) % len(data.labels))
        return corrupted_problem(data, wrong, corrupted, self.discovery)
