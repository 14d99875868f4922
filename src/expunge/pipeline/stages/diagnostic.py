"""Run a diagnostic on an original before anything is unlearned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from expunge.base.record import spelled
from expunge.pipeline.parts import Parts
from expunge.pipeline.stage import ESTIMATES, Stage
from expunge.pipeline.stage_kind import Output, StageKind, setting
from expunge.pipeline.stages._models import training_cost
from expunge.pipeline.worker import Worker


@dataclass(frozen=True)
class DiagnosticStage(StageKind):
    """Estimates by the name of the quantity."""

    files: ClassVar[Mapping[str, str | None]] = {ESTIMATES: "diagnosis"}

    def run(self, worker: Worker, stage: Stage) -> Output:
        original = worker.model(stage.input("model"), worker.problem(stage))
        diagnostic, seed = worker.plan.diagnostics[stage.part], worker.plan.seeds.diagnostic(stage)
        estimates = diagnostic(worker.case(stage, original), seed, **worker.statistics(stage))
        table = {name: spelled(estimate.as_json()) for name, estimate in estimates.items()}
        return Output({ESTIMATES: json.dumps(table, indent=1, allow_nan=False).encode()})

    def cost(self, plan: Parts, stage: Stage) -> float:
        diagnostic = plan.diagnostics[stage.part]
        nets = 0.0 if plan.data.cscore is not None else setting(diagnostic, "nets", 0)
        # A diagnostic with a budget may take all of it.
        return 0.7 * training_cost(plan) * nets + len(plan.data.train) * setting(diagnostic, "epochs", 0)
