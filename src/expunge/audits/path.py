"""Loss along the straight line from the original to a model, and its barrier (linear mode connectivity, 2505.22310).

theta(t) = (1 - t) theta_original + t theta at evenly spaced t. All floating-point and complex state is interpolated,
including the running statistics of batch norm, which are not recalibrated. The barrier is the largest height of the
cross-entropy above the chord between the two ends.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import msgspec
import numpy as np
import torch
from torch import nn

from expunge.base.part import Count
from expunge.core.case import Case
from expunge.core.contracts import Audit
from expunge.core.problem import Problem
from expunge.evidence.scores import Scores
from expunge.numerics.real import is_continuous
from expunge.train.evaluation import losses, sample


@dataclass(frozen=True)
class Path(Audit):
    """Loss on the path to the original; predicts, does not judge."""

    after_attack: ClassVar[bool] = False

    points: Annotated[int, msgspec.Meta(ge=3)] = 21
    """Points on the path, both ends included."""
    sample: Count = 1000
    """Retain examples to evaluate on, a fixed random part."""

    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        """Mean cross-entropy at each point, on retain and on the unexposed forget set."""
        return barriers("barrier", case.original, model, case.problem, self.points, self.sample)


def barriers(
    metric: str, start: nn.Module, end: nn.Module, problem: Problem, points: int, retained: int
) -> list[Scores]:
    """Mean cross-entropy at each point between two models, on a sample of retain and on the unexposed forget set."""
    splits = {"retain": sample(problem.retain, retained, "path"), "forget": problem.unexposed}
    means: dict[str, list[float]] = {split: [] for split in splits}
    for between in interpolate(start, end, points):
        for split, ids in splits.items():
            means[split].append(float(losses(between, problem, ids).mean()))
    grid, unit = np.arange(points), problem.objective.loss_unit
    return [
        Scores(metric, split, np.array(values), grid, "predictor", unit, "reference", reduce="barrier")
        for split, values in means.items()
    ]


def interpolate(start: nn.Module, end: nn.Module, points: int) -> Iterator[nn.Module]:
    """The models on the line, both ends included; all of them are the same module, updated in place."""
    between = copy.deepcopy(end)
    first, last, state = start.state_dict(), end.state_dict(), between.state_dict()
    with torch.no_grad():
        for index in range(points):
            t = index / (points - 1)
            for name, tensor in state.items():
                if is_continuous(tensor):
                    tensor.copy_((1 - t) * first[name] + t * last[name])
            yield between
