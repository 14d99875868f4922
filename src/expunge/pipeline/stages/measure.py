"""Statistics of a part, computed once for all stages that use them: C-scores, importances, curvature factors.

A part with `measures = True` gets such a stage. For a task, the stage calls `measure(data, recipe, seed)` once for all
seeds, and the task is called with the tensors. For any other part, it calls `measure(model, job)` with the
part's model. The part is called with the tensors as the keyword `statistics`, and a method's `apply` reads them from
`job.statistics`. The part's `measuring()` returns,
as plain data, what the statistics depend on: parts that return the same share one stage. Without `measuring()`, the
statistics depend on all settings of the part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from safetensors.torch import save as save_tensors

from expunge.core.case import Meter
from expunge.core.job import Job
from expunge.core.modules import first_parameter
from expunge.core.seeding import forked
from expunge.pipeline.parts import Parts
from expunge.pipeline.stage import STATISTICS, Stage
from expunge.pipeline.stage_kind import Output, StageKind, setting
from expunge.pipeline.stages._models import training_cost
from expunge.pipeline.worker import Worker


@dataclass(frozen=True)
class MeasureStage(StageKind):
    """Statistics of a part, as tensors."""

    files: ClassVar[Mapping[str, str | None]] = {STATISTICS: None}

    def run(self, worker: Worker, stage: Stage) -> Output:
        plan, seed, meter = worker.plan, worker.plan.seeds.measure(stage), Meter()
        if stage.part_kind is None:
            tensors = plan.task.measure(plan.data, plan.recipe(plan.data), seed)
        else:
            problem, part = worker.problem(stage), plan.part(stage.part_kind, stage.part)
            model, original = worker.model_and_original(stage)
            with forked(seed):
                device = first_parameter(model).device
                job = Job(problem, worker.recipe(problem), seed, meter, device, original)
                tensors = part.measure(model, job)
        return Output({STATISTICS: save_tensors({n: t.contiguous() for n, t in tensors.items()})}, meter.gradients)

    def cost(self, plan: Parts, stage: Stage) -> float:
        if stage.part_kind is not None:
            return len(plan.data.train)
        return 0 if plan.data.cscore is not None else 0.7 * training_cost(plan) * setting(plan.task, "nets", 1)
