"""Which object of a scene still carries what was forgotten: where the gradient of the forget loss lies.

The saliency of a pixel is the size of the gradient of the forget example's loss by it, over all channels (1312.6034).
Objects are compared by the mean over their visible pixels, the background too. The objects are those of the generator:
real data need segments instead, see the diagnostic `object_attribution`, which looks at the original.

A gradient shows where a model looks, not what it knows: a retrained model also looks at shapes when it is asked for one
that it never saw. So both scores are descriptions, to be read beside those of retrained models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from expunge.core.case import Case
from expunge.core.contracts import Audit
from expunge.core.problem import Problem
from expunge.core.scenes import require_scenes
from expunge.diagnostics.object_attribution import carriers, inside, pooled, saliency
from expunge.evidence.scores import Scores
from expunge.train.loop import in_order

WHERE = "audit.object_saliency"


@dataclass(frozen=True)
class ObjectSaliency(Audit):
    """Whether the forgotten object is the most salient one, and its share of the saliency; it does not judge."""

    cite: ClassVar[str] = "simonyan2013deep"

    def check(self, problem: Problem) -> None:
        """Refuse data without objects, and forget examples that do not say which of their objects count.

        Raises:
            SpecError: They are such.
        """
        carriers(require_scenes(problem.data, WHERE), problem.forget, WHERE)

    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        """Two numbers of each forget example: `most_salient`, 0 or 1, and the share `saliency_on_object`.

        Raises:
            SpecError: As in `check`.
        """
        problem, ids = case.problem, case.problem.unexposed
        scenes, parts = require_scenes(problem.data, WHERE), list[Tensor]()
        for batch in in_order(problem.data, ids):
            heat, marked = saliency(model, problem.objective, batch), carriers(scenes, batch.ids, WHERE)
            region, _ = pooled(heat, scenes.masks[batch.ids])
            share = (heat * marked).sum((1, 2)) / heat.sum((1, 2)).clamp(min=torch.finfo(heat.dtype).tiny)
            parts.append(torch.stack([inside(region, marked), share]))
        most, share = torch.cat(parts, 1).double().numpy()
        return [self._scores("most_salient", most, problem), self._scores("saliency_on_object", share, problem)]

    def _scores(self, metric: str, values: np.ndarray, problem: Problem) -> Scores:
        ids = problem.unexposed
        group = None if problem.data.groups is None else problem.data.group_of(ids).numpy()
        return Scores(metric, "forget", values, ids.numpy(), "description", "share", "reference", group=group)
