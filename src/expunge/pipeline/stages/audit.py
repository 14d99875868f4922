"""Run an audit on a model, with its original and, if the audit needs them, shadow models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from expunge.core.case import Shadows
from expunge.evidence import scores as score_files
from expunge.pipeline.parts import Parts
from expunge.pipeline.stage import SCORES, Stage
from expunge.pipeline.stage_kind import FORWARD, Output, StageKind, setting
from expunge.pipeline.worker import Worker


@dataclass(frozen=True)
class AuditStage(StageKind):
    """Scores of a model."""

    files: ClassVar[Mapping[str, str | None]] = {SCORES: "scores"}

    def run(self, worker: Worker, stage: Stage) -> Output:
        problem = worker.problem(stage)
        model, original = worker.model_and_original(stage)
        knew, never = (worker.models(stage.several(name), problem) for name in ("knew", "never"))
        case = worker.case(stage, original, Shadows(knew, never) if knew or never else None)
        audit, seed = worker.plan.audits[stage.part], worker.plan.seeds.audit(stage)
        return Output({SCORES: score_files.dumps(audit(model, case, seed, **worker.statistics(stage)))})

    def cost(self, plan: Parts, stage: Stage) -> float:
        audit = plan.audits[stage.part]
        scored = len(plan.data.test) + setting(audit, "retain", setting(audit, "sample", 0))
        return FORWARD * scored * setting(audit, "points", 1)
