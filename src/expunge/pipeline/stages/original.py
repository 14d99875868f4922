"""The original model, which knows the forget set: trained by the run, or given by the user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from expunge.core import checkpoint
from expunge.core.first_pass import EXAMPLES, first_pass
from expunge.pipeline.parts import Parts
from expunge.pipeline.stage import WEIGHTS, Stage
from expunge.pipeline.stage_kind import Output, StageKind
from expunge.pipeline.stages._models import trained, training_cost, written_by_training
from expunge.pipeline.worker import Worker


@dataclass(frozen=True)
class OriginalStage(StageKind):
    """Weights of the original."""

    files: ClassVar[Mapping[str, str | None]] = {WEIGHTS: "models"}

    def written(self, plan: Parts) -> Mapping[str, str | None]:
        return self.files if plan.gives_original else written_by_training(self.files, plan)

    def run(self, worker: Worker, stage: Stage) -> Output:
        problem = worker.problem(stage)
        model = worker.plan.original(problem.data)
        if model is None:
            return trained(worker, stage, problem.train, watched=True)
        # One forward pass now, so that an output of the wrong width is reported here and not later, inside a method.
        first_pass(model, problem.objective, problem.data.batch(problem.test[:EXAMPLES]))
        return Output({WEIGHTS: checkpoint.dump(model)})

    def cost(self, plan: Parts, stage: Stage) -> float:
        return 0 if plan.gives_original else training_cost(plan)
