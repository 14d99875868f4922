"""Some forget examples with what every model of the first seed says to them; only where the spec asks for it."""

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

ASKED = ("original", "reference", "unlearn", "attack")
"""Kinds of stage that leave one model, which is asked."""


@dataclass(frozen=True)
class GalleryStage(StageKind):
    """Examples and answers, as `pipeline.gallery` puts them."""

    files: ClassVar[Mapping[str, str | None]] = {EXAMPLES: "examples"}

    def run(self, worker: Worker, stage: Stage) -> Output:
        problem, by_key = worker.problem(stage), worker.plan.by_key
        asked = [by_key[key] for key in stage.several("models")]
        models = (((s.model, s.attack), worker.model(s.key, problem)) for s in asked)
        table = gallery(problem, models, stage.seed or 0)
        return Output({EXAMPLES: json.dumps(table, ensure_ascii=False, indent=1).encode()})

    def cost(self, plan: Parts, stage: Stage) -> float:
        return FORWARD * PICTURES * len(stage.needs)

    def added(self, layout: Layout, stages: Sequence[Stage]) -> Iterator[Stage]:
        if layout.parts.spec.gallery:
            seed, shown = layout.parts.spec.seeds[0], layout.parts.models
            models = [stage for stage in stages if stage.seed == seed and stage.kind in ASKED and stage.model in shown]
            # Its output names the models, so that here, unlike elsewhere, a label is part of the address.
            facts = {"format": FORMAT, "models": [(stage.model, stage.attack) for stage in models]}
            inputs = {"models": tuple(stage.key for stage in models)}
            yield layout.stage("gallery", "", seed, None, "gallery", facts, inputs)
