"""A shadow model, made like an audited model from another seed: trained, unlearned and attacked, one stage each.

There are many shadow models, and only audits use them: they stay in the cache and are not part of the record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from expunge.evidence.table import ORIGINAL, REFERENCE
from expunge.pipeline.parts import Parts
from expunge.pipeline.stage import WEIGHTS, Stage
from expunge.pipeline.stage_kind import Output, StageKind
from expunge.pipeline.stages._models import (
    attack_cost,
    attacked,
    trained,
    training_cost,
    unlearned,
    unlearning_cost,
)
from expunge.pipeline.worker import Worker


@dataclass(frozen=True)
class ShadowStage(StageKind):
    """Weights of a shadow."""

    files: ClassVar[Mapping[str, str | None]] = {WEIGHTS: None}

    def run(self, worker: Worker, stage: Stage) -> Output:
        if stage.attack is not None:
            output = attacked(worker, stage)
            return replace(output, files={WEIGHTS: output.files[WEIGHTS]})
        if stage.model not in (ORIGINAL, REFERENCE):
            return unlearned(worker, stage)
        problem = worker.problem(stage)
        return trained(worker, stage, problem.train if stage.model == ORIGINAL else problem.reference_train)

    def cost(self, plan: Parts, stage: Stage) -> float:
        if stage.attack is not None:
            return attack_cost(plan, stage.attack)
        trains = stage.model in (ORIGINAL, REFERENCE)
        return training_cost(plan) if trains else unlearning_cost(plan, stage.model)
