"""Which object of a scene still carries what was forgotten: the loss when an object is not there (1311.2901).

Of a forget example, the generator takes out objects; it knows what is behind them. If the model's answer rests
on the object that was to be forgotten, the loss rises without it; if it rests on another object, it rises without that.

    occluded          loss without the objects that the example's labels are about, minus the loss with them, in nats
    occluded_other    the same for the one other object whose absence raises the loss most; 0 if there is none
    carrier           1 if the first is above 0 and above the second: the forgotten object carries the answer

A model that never saw such an object rests on nothing. All of them are descriptions, to be read beside those of
retrained models. Where no generator knows the objects, see the diagnostic `object_attribution`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from expunge.core.case import Case
from expunge.core.contracts import Audit
from expunge.core.data import Batch
from expunge.core.modules import evaluating
from expunge.core.objective import DECISIONS
from expunge.core.problem import Problem
from expunge.core.scenes import Scenes, require_scenes
from expunge.diagnostics.object_attribution import named_objects
from expunge.evidence.scores import Scores
from expunge.train.loop import in_order

WHERE = "audit.object_occlusion"
UNITS = {"occluded": "nats", "occluded_other": "nats", "carrier": "share"}


@dataclass(frozen=True)
class ObjectOcclusion(Audit):
    """How much the answer rests on the forgotten object, and on the others; it does not judge."""

    needs: ClassVar[frozenset[str]] = frozenset({DECISIONS})
    cite: ClassVar[str] = "zeiler2014visualizing"

    def check(self, problem: Problem) -> None:
        """Refuse data without objects, and forget examples that do not say which of their objects count.

        Raises:
            SpecError: They are such.
        """
        named_objects(require_scenes(problem.data, WHERE), problem.forget, WHERE)

    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        """Three numbers of each forget example: see the top of this file.

        Raises:
            SpecError: As in `check`.
        """
        problem = case.problem
        scenes = require_scenes(problem.data, WHERE)
        with evaluating(model), torch.no_grad():
            parts = [_rises(model, problem, scenes, batch) for batch in in_order(scenes, problem.unexposed)]
        own, other = torch.cat(parts, 1).double().numpy()
        carrier = (own > np.maximum(other, 0)).astype(np.float64)
        values = {"occluded": own, "occluded_other": other, "carrier": carrier}
        return [_scores(metric, of, problem) for metric, of in values.items()]


def _rises(model: nn.Module, problem: Problem, scenes: Scenes, batch: Batch) -> Tensor:
    """Rise of the loss without the named objects, and the largest one without another object, `[2, b]`."""
    ids = batch.ids
    named, there = named_objects(scenes, ids, WHERE), scenes.kinds[ids] >= 0
    before = problem.objective.losses(model, batch)

    def without(gone: Tensor) -> Tensor:
        return (problem.objective.losses(model, batch._replace(inputs=scenes.without(ids, gone))) - before).cpu()

    numbers = torch.arange(named.shape[1])
    rises = [without((numbers == number) & there) for number in numbers]
    others = torch.stack(rises, 1).masked_fill(named | ~there, -torch.inf).amax(1)
    return torch.stack([without(named), torch.where(others.isinf(), 0.0, others)])


def _scores(metric: str, values: np.ndarray, problem: Problem) -> Scores:
    ids = problem.unexposed
    group = None if problem.data.groups is None else problem.data.group_of(ids).numpy()
    return Scores(metric, "forget", values, ids.numpy(), "description", UNITS[metric], "reference", group=group)
