"""Statistics of a method are a stage: computed once, shared by all methods that say the same of them, and charged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from expunge import testing
from expunge.base import registry
from expunge.base.errors import SpecError
from expunge.base.spec import parse
from expunge.pipeline.plan import Plan
from expunge.pipeline.stage import STATISTICS, Stage
from expunge.testing._settings import every_setting
from expunge.testing._state import difference
from helpers import finished, run, tiny

METHODS = """
from dataclasses import dataclass
from typing import ClassVar
import torch
from expunge.base.part import Count
from expunge.core.method import Method

def trainable(model):
    return [(n, p) for n, p in model.named_parameters() if p.requires_grad]

@dataclass(frozen=True)
class Shrink(Method):
    measures: ClassVar[bool] = True
    strength: float = 0.5
    power: Count = 2

    def measuring(self):
        return {"mean weight": self.power}

    def measure(self, model, job):
        job.meter.charge(7)
        return {n: p.detach().abs().pow(self.power).mean() for n, p in model.named_parameters()}

    def apply(self, student, job):
        job.meter.charge(3)
        with torch.no_grad():
            for name, p in trainable(student):
                p.mul_(1 - self.strength * job.statistics[name])
        return student

@dataclass(frozen=True)
class Grow(Shrink):
    strength: float = -0.5
"""
DRAWING = """
from dataclasses import dataclass
from typing import ClassVar
import torch
from expunge.core.method import Method

@dataclass(frozen=True)
class Drawing(Method):
    measures: ClassVar[bool] = True

    def measure(self, model, job):
        assert not model.training
        return {"noise": torch.rand(3)}

    def apply(self, student, job):
        with torch.no_grad():
            next(student.parameters()).add_(torch.rand(()))
        return student
"""
GROUPS = dict.fromkeys(("Shrink", "Grow"), "expunge.methods")


def spec(*methods: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return tiny(seeds=[0], method=list(methods), attack=[], audit=[], **changes)


def measured(table: dict[str, Any]) -> list[Stage]:
    return [stage for stage in Plan(parse(table, Path())).stages if stage.kind == "measure"]


def test_two_methods_share_one_stage(install: Any, tmp_path: Path) -> None:
    install(METHODS, GROUPS)
    table, out = spec({"name": "shrink"}, {"name": "grow"}), tmp_path / "runs"
    plan = Plan(parse(table, Path()))
    [statistics] = measured(table)
    original, *methods = [stage for stage in plan.stages if stage.kind in ("original", "unlearn")]
    assert len(methods) == 2
    assert {stage.inputs["statistics"] for stage in methods} == {statistics.key}
    assert statistics.inputs == {"model": original.key, "original": original.key}

    finished(run(table, out))
    weights = {m: load_file(out / "tiny" / "models" / f"{m}-s0.safetensors") for m in ("original", "shrink", "grow")}
    kept = load_file(out / "cache" / statistics.key / STATISTICS)
    for name, tensor in weights["original"].items():
        mean = tensor.abs().pow(2).mean()
        assert kept[name] == mean
        assert (weights["shrink"][name] == tensor * (1 - 0.5 * mean)).all()
        assert (weights["grow"][name] == tensor * (1 + 0.5 * mean)).all()
    stages = json.loads((out / "tiny" / "manifest.json").read_text())["stages"]
    assert [stage["kind"] for stage in stages].count("measure") == 1
    # What the statistics took is part of what each method took.
    assert {stage["model"]: stage["gradients"] for stage in stages if stage["kind"] == "unlearn"} == {
        "shrink": 10,
        "grow": 10,
    }


@pytest.mark.parametrize("given", [False, True])
def test_a_method_called_without_statistics_measures_itself_and_is_charged(install: Any, given: bool) -> None:
    install(METHODS, GROUPS)
    setting = every_setting()[0]
    model, method = setting.model(), registry.load("method", "shrink")()
    means = {n: p.detach().square().mean() for n, p in model.named_parameters()}
    done = method(model, setting.problem, None, 0, statistics=means if given else None)
    assert done.cost.gradients == (3 if given else 10)
    for name, parameter in done.model.named_parameters():
        assert (parameter == dict(model.named_parameters())[name] * (1 - 0.5 * means[name])).all()


def test_what_measuring_draws_moves_no_draw_of_the_method(install: Any) -> None:
    install(DRAWING, {"Drawing": "expunge.methods"})
    setting = every_setting()[0]
    model, method = setting.model(), registry.load("method", "drawing")()
    measured, given = (method(model, setting.problem, None, 0, statistics=s).model for s in (None, {}))
    assert not difference(measured, given)


def test_a_budget_that_statistics_exceed_is_refused(install: Any) -> None:
    install(METHODS, GROUPS)
    setting = every_setting()[0]
    with pytest.raises(SpecError, match="its statistics took 7 per-example gradients of 6"):
        registry.load("method", "shrink")()(setting.model(), setting.problem, None, 0, budget=6)


def test_a_method_that_measures_keeps_its_contract(install: Any) -> None:
    install(METHODS, GROUPS)
    testing.check_method(registry.load("method", "shrink")())


@pytest.mark.parametrize(
    ("change", "count"),
    [({"strength": 0.1}, 1), ({"power": 3}, 2), ({"after": "shrink"}, 2)],
)
def test_other_statistics_and_another_start_are_another_stage(install: Any, change: dict[str, Any], count: int) -> None:
    install(METHODS, GROUPS)
    assert len(measured(spec({"name": "shrink"}, {"name": "grow", **change}))) == count


def test_shadows_have_statistics_of_their_own(install: Any, tmp_path: Path) -> None:
    install(METHODS, GROUPS)
    table = spec({"name": "shrink"}, {"name": "grow"}) | {"audit": [{"name": "u_lira", "shadows": 4}]}
    assert len(measured(table)) == 1 + 2
    finished(run(table, tmp_path / "runs"))
