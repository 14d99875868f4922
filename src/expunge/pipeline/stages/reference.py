"""The reference: a model retrained without the forget set, with which all other models are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from expunge.pipeline.parts import Parts
from expunge.pipeline.stage import WEIGHTS, Stage
from expunge.pipeline.stage_kind import Output, StageKind
from expunge.pipeline.stages._models import trained, training_cost, written_by_training
from expunge.pipeline.worker import Worker


@dataclass(frozen=True)
class ReferenceStage(StageKind):
    """Weights of a reference."""

    files: ClassVar[Mapping[str, str | None]] = {WEIGHTS: "models"}

    def written(self, plan: Parts) -> Mapping[str, str | None]:
        return written_by_training(self.files, plan)

    def run(self, worker: Worker, stage: Stage) -> Output:
        return trained(worker, stage, worker.problem(stage).reference_train, watched=True)

    def cost(self, plan: Parts, stage: Stage) -> float:
        return training_cost(plan)
