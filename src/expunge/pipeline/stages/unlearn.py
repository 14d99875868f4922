"""Apply a method to the original, or to another method's model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from expunge.pipeline.parts import Parts
from expunge.pipeline.stage import WEIGHTS, Stage
from expunge.pipeline.stage_kind import Output, StageKind
from expunge.pipeline.stages._models import unlearned, unlearning_cost
from expunge.pipeline.worker import Worker


@dataclass(frozen=True)
class UnlearnStage(StageKind):
    """Weights of an unlearned model."""

    files: ClassVar[Mapping[str, str | None]] = {WEIGHTS: "models"}

    def run(self, worker: Worker, stage: Stage) -> Output:
        return unlearned(worker, stage)

    def cost(self, plan: Parts, stage: Stage) -> float:
        return unlearning_cost(plan, stage.model)
