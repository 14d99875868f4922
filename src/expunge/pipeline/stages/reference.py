"""The model retrained without the forget set, which everything is held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from expunge.pipeline.parts import Parts
from expunge.pipeline.stage import WEIGHTS, Stage
from expunge.pipeline.stages._kind import Output, StageKind
from expunge.pipeline.stages._models import trained, training_cost
from expunge.pipeline.stages._worker import Worker


@dataclass(frozen=True)
class ReferenceStage(StageKind):
    """Weights of a reference."""

    files: ClassVar[Mapping[str, str | None]] = {WEIGHTS: "models"}

    def run(self, worker: Worker, stage: Stage) -> Output:
        return trained(worker, stage, worker.problem(stage).reference_train)

    def cost(self, plan: Parts, stage: Stage) -> float:
        return training_cost(plan)
