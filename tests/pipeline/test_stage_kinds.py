"""A kind of stage is one file, also of another package; it writes what its class names, no more and no fewer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expunge.base import registry
from expunge.base.errors import SpecError
from expunge.base.memory import MemoryStore
from expunge.base.spec import parse
from expunge.pipeline.plan import Plan, Stage
from expunge.pipeline.stage_kind import kind_of
from expunge.pipeline.worker import Worker
from helpers import cli, finished, run, stages_done, tiny

KIND = """
import json
from dataclasses import dataclass
from typing import ClassVar
from expunge.pipeline.stage_kind import Output, StageKind

@dataclass(frozen=True)
class Sizes(StageKind):
    files: ClassVar = {"sizes.json": "sizes"}

    def run(self, worker, stage):
        model = worker.model(stage.input("model"), worker.problem(stage))
        sizes = {name: p.numel() for name, p in model.named_parameters()}
        return Output({"sizes.json": json.dumps(sizes).encode()}, gradients=5)

    def cost(self, plan, stage):
        return 5

    def added(self, layout, stages):
        for stage in stages:
            if stage.kind == "original":
                yield layout.stage("sizes", stage.model, stage.seed, None, "", {}, {"model": stage.key})
"""
GROUPS = {"Sizes": "expunge.stages"}


def test_every_kind_is_a_file_that_names_what_it_writes() -> None:
    names = registry.names("stage")
    assert {"measure", "original", "reference", "unlearn", "shadow", "attack", "audit", "diagnostic"} <= set(names)
    for name in names:
        kind = kind_of(name)
        assert type(kind).__name__ == f"{name.capitalize()}Stage" and kind.files


def test_a_kind_of_another_package_is_planned_run_and_recorded(install: Any, tmp_path: Path) -> None:
    without = {stage.key for stage in Plan(parse(tiny(), Path())).stages}
    install(KIND, GROUPS)
    plan = Plan(parse(tiny(), Path()))
    added = [stage for stage in plan.stages if stage.key not in without]
    assert [(stage.kind, stage.seed) for stage in added] == [("sizes", 0), ("sizes", 1)]
    assert without < {stage.key for stage in plan.stages}, "what was there keeps its address"
    out = tmp_path / "runs"
    finished(run(tiny(), out, "--workers", 2))
    assert {stage.key for stage in added} <= stages_done(out)
    stages = [s for s in json.loads((out / "tiny" / "manifest.json").read_text())["stages"] if s["kind"] == "sizes"]
    assert [stage["gradients"] for stage in stages] == [5, 5]
    sizes = json.loads((out / "tiny" / stages[0]["files"]["sizes"]["path"]).read_text())
    assert sum(sizes.values()) == 64 * 16 + 16 + 16 * 10 + 10
    finished(cli("verify", out / "tiny"))


@pytest.mark.parametrize("written", ["{}", '{"sizes.json": b"", "more.json": b""}'])
def test_a_stage_that_does_not_write_what_its_class_names_is_refused(
    install: Any, tmp_path: Path, written: str
) -> None:
    install(KIND.replace('{"sizes.json": json.dumps(sizes).encode()}', written), GROUPS)
    result = run(tiny(), tmp_path / "runs")
    assert result.code == 4 and "sizes original: it wrote" in result.message()
    assert "the files that its kind names: sizes.json" in result.message()


@pytest.mark.parametrize("place", ["", "seed 0: original", "data.forget", "method 'npo'"])
def test_a_failed_stage_is_named_once(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(parse(tiny(seeds=[0]), Path()))
    [stage] = [stage for stage in plan.stages if stage.kind == "original"]

    def fail(self: object, worker: Worker, stage: Stage) -> None:
        raise SpecError("it failed", where=place)

    monkeypatch.setattr(type(kind_of("original")), "run", fail)
    with pytest.raises(SpecError) as caught:
        Worker(plan, MemoryStore()).run(stage)
    assert caught.value.where.count("seed 0: original") == 1
    assert caught.value.where.endswith(place)
