"""Apply an attack to a model: the attacked model and the attack's curve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from expunge.pipeline.parts import Parts
from expunge.pipeline.stage import CURVE, SCORES, WEIGHTS, Stage
from expunge.pipeline.stage_kind import Output, StageKind
from expunge.pipeline.stages._models import attack_cost, attacked
from expunge.pipeline.worker import Worker


@dataclass(frozen=True)
class AttackStage(StageKind):
    """Weights at the peak of the curve, the curve, and scores at its end."""

    files: ClassVar[Mapping[str, str | None]] = {SCORES: "scores", CURVE: "curves", WEIGHTS: "models"}

    def run(self, worker: Worker, stage: Stage) -> Output:
        return attacked(worker, stage)

    def cost(self, plan: Parts, stage: Stage) -> float:
        return attack_cost(plan, stage.attack)
