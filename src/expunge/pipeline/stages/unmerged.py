"""A second row beside the audited model of a method with an adapter: base and adapter, not merged, as PEFT runs them.

What is attacked, judged and shipped is the merged model, in single precision. The two differ by rounding, and by more
if the user's own folder is in half precision: then the base of this row is, too. The row has the objective's own
audits before any attack, and no verdict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from expunge.core.hf_folder import CONFIG, read_table
from expunge.core.peft_save import unmerged
from expunge.evidence import scores as score_files
from expunge.evidence.table import UNMERGED
from expunge.pipeline.layout import Layout
from expunge.pipeline.parts import Parts
from expunge.pipeline.stage import SCORES, Stage
from expunge.pipeline.stage_kind import Output, StageKind, kind_of
from expunge.pipeline.worker import Worker


@dataclass(frozen=True)
class UnmergedStage(StageKind):
    """Scores of base and adapter."""

    files: ClassVar[Mapping[str, str | None]] = {SCORES: "scores"}

    def run(self, worker: Worker, stage: Stage) -> Output:
        problem, plan = worker.problem(stage), worker.plan
        label = stage.model.removesuffix(UNMERGED)
        merged, base = (worker.model(stage.input(name), problem) for name in ("merged", "model"))
        stored = _stored(plan, on_original=stage.input("model") == stage.input("original"))
        model = unmerged(merged, base, plan.adapters["method", label], stored)
        case = worker.case(stage, worker.model(stage.input("original"), problem))
        audit = plan.audits[stage.part]
        return Output({SCORES: score_files.dumps(audit(model, case, plan.seeds.audit(stage)))})

    def cost(self, plan: Parts, stage: Stage) -> float:
        return kind_of("audit").cost(plan, stage)

    def added(self, layout: Layout, stages: Sequence[Stage]) -> Iterator[Stage]:
        parts = layout.parts
        for made in stages:
            adapter = parts.adapters.get(("method", made.model))
            if made.kind != "unlearn" or adapter is None or made.model not in parts.models:
                continue
            inputs = {"merged": made.key, "model": made.input("model"), "original": made.input("original")}
            for name in parts.data.objective.audits:
                facts = {"part": parts.audits[name].fingerprint(), "adapter": adapter.fingerprint()}
                yield layout.stage("unmerged", f"{made.model}{UNMERGED}", made.seed, None, name, facts, inputs)


def _stored(plan: Parts, *, on_original: bool) -> torch.dtype:
    """The type of the base's weights: that of the user's own folder, if the adapter is one on its model."""
    files = plan.inputs.files
    config = files.get("model.path", {}).get(CONFIG)
    if config is None or "model.adapter" in files or not on_original:
        return torch.float32
    table = read_table(config)
    stored = getattr(torch, str(table.get("dtype", table.get("torch_dtype"))), None)
    return stored if stored in (torch.bfloat16, torch.float16) else torch.float32
