"""Some forget examples with the answers of every model of the first seed; only if the spec asks for it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from expunge.pipeline.gallery import FORMAT, PICTURES, gallery
from expunge.pipeline.layout import Layout
from expunge.pipeline.parts import Parts
from expunge.pipeline.stage import EXAMPLES, Stage
from expunge.pipeline.stage_kind import FORWARD, Output, StageKind
from expunge.pipeline.worker import Worker

ANSWERING = ("original", "reference", "unlearn", "attack")
"""Kinds of stage that make one model; this model answers."""


@dataclass(frozen=True)
class GalleryStage(StageKind):
    """Examples and answers, in the form of `pipeline.gallery`."""

    files: ClassVar[Mapping[str, str | None]] = {EXAMPLES: "examples"}

    def run(self, worker: Worker, stage: Stage) -> Output:
        problem, by_key = worker.problem(stage), worker.plan.by_key
        makers = [by_key[key] for key in stage.several("models")]
        models = (((s.model, s.attack), worker.model(s.key, problem)) for s in makers)
        table = gallery(problem, models, stage.seed or 0)
        return Output({EXAMPLES: json.dumps(table, ensure_ascii=False, indent=1).encode()})

    def cost(self, plan: Parts, stage: Stage) -> float:
        return FORWARD * PICTURES * len(stage.needs)

    def added(self, layout: Layout, stages: Sequence[Stage]) -> Iterator[Stage]:
        if layout.parts.spec.gallery:
            seed, shown = layout.parts.spec.seeds[0], layout.parts.models
            models = [s for s in stages if s.seed == seed and s.kind in ANSWERING and s.model in shown]
            # The output names the models, so the labels are part of the address here, unlike in other stages.
            facts = {"format": FORMAT, "models": [(stage.model, stage.attack) for stage in models]}
            inputs = {"models": tuple(stage.key for stage in models)}
            yield layout.stage("gallery", "", seed, None, "gallery", facts, inputs)
