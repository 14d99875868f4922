"""The reference, with which all other models are compared: retrained without the forget set, or the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from expunge.core import checkpoint
from expunge.pipeline.parts import Parts
from expunge.pipeline.references import given_reference
from expunge.pipeline.stage import WEIGHTS, Stage
from expunge.pipeline.stage_kind import Output, StageKind
from expunge.pipeline.stages._models import trained, training_cost, written_by_training
from expunge.pipeline.worker import Worker


@dataclass(frozen=True)
class ReferenceStage(StageKind):
    """Weights of a reference."""

    files: ClassVar[Mapping[str, str | None]] = {WEIGHTS: "models"}

    def written(self, plan: Parts) -> Mapping[str, str | None]:
        return written_by_training(self.files, plan) if plan.trains else self.files

    def run(self, worker: Worker, stage: Stage) -> Output:
        problem, plan = worker.problem(stage), worker.plan
        if plan.trains:
            return trained(worker, stage, problem.reference_train, watched=True)
        return Output({WEIGHTS: checkpoint.dump(given_reference(plan, stage, problem))})

    def cost(self, plan: Parts, stage: Stage) -> float:
        return training_cost(plan) if plan.trains else 0
