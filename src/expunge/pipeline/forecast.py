"""What a run will cost before it runs: per-example gradients from the settings, seconds from three measured steps."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from expunge.base.part import Part
from expunge.base.record import Store
from expunge.core.contracts import Method
from expunge.core.seeding import forked
from expunge.numerics.linops import differentiable
from expunge.pipeline.gallery import PICTURES
from expunge.pipeline.plan import Plan, Stage

OVERHEAD = 0.05
"""Seconds that a stage takes to read and write its files."""
FORWARD = 1 / 3
"""Cost of a forward pass in units of a gradient: the backward pass is twice the forward one."""


@dataclass(frozen=True)
class Forecast:
    """A stage with what it is expected to take."""

    stage: Stage
    done: bool
    seconds: float


def forecast(plan: Plan, store: Store) -> list[Forecast]:
    """Every stage of the plan with its expected seconds, 0 where its output is there.

    The rate is measured on three training steps of the plan's own model; audits count as forward passes. A method says
    itself how many gradients it expects to take. What it does besides (a search, a second model) is not known here, so
    expect errors of a factor 2.

    Args:
        plan: What would be run.
        store: What is there already.

    Returns:
        In the order of the plan.
    """
    done = {stage.key: store.has(stage.key) for stage in plan.stages}
    rate = 0.0 if all(done.values()) else seconds_per_gradient(plan)
    return [
        Forecast(stage, done[stage.key], 0.0 if done[stage.key] else OVERHEAD + rate * gradients(plan, stage))
        for stage in plan.stages
    ]


def seconds_per_gradient(plan: Plan) -> float:
    """Measured seconds per example of a training step, the fastest of three; nothing outside is touched.

    Raises:
        SpecError: No parameter of the model takes a gradient.
    """
    torch.set_num_threads(plan.spec.threads)
    data, objective = plan.data, plan.data.objective
    model = plan.recipe(data).build(0).train()
    parameters, batch = differentiable(model), data.batch(data.train[: plan.training.batch_size])
    times = []
    with forked():
        for _ in range(4):
            start = time.perf_counter()
            torch.autograd.grad(objective.loss(model, batch), parameters, allow_unused=True)
            times.append(time.perf_counter() - start)
    # The first step allocates.
    return min(times[1:]) / batch.size


def gradients(plan: Plan, stage: Stage) -> float:
    """Per-example gradients that a stage is expected to take, forward passes counted as `FORWARD`."""
    train, n = plan.training.epochs * len(plan.data.train), len(plan.data.train)
    attacked, shadow = stage.kind == "attack", stage.kind == "shadow"
    if stage.attack is not None and (attacked or shadow):
        return n * _setting(plan.attacks[stage.attack], "epochs", 1)
    if stage.kind in ("original", "reference") or (shadow and stage.model in ("original", "reference")):
        return 0 if stage.kind == "original" and plan.about_one_model else train
    if stage.kind == "measure":
        return 0 if plan.data.cscore is not None else 0.7 * train * _setting(plan.task, "nets", 1)
    if stage.kind == "unlearn" or shadow:
        method = plan.methods[stage.model]
        if "recipe" in getattr(method, "needs", ()):
            return train
        # A plain function does not say.
        return method.expected_gradients(*plan.sizes) if isinstance(method, Method) else n
    if stage.kind == "diagnostic":
        nets = 0.0 if plan.data.cscore is not None else _setting(plan.diagnostics[stage.part], "nets", 0)
        # A diagnostic with a budget may take all of it.
        budget = n * _setting(plan.diagnostics[stage.part], "epochs", 0)
        return 0.7 * train * nets + budget
    if stage.kind == "gallery":
        return FORWARD * PICTURES * len(stage.needs)
    audit = plan.audits[stage.part]
    scored = len(plan.data.test) + _setting(audit, "retain", _setting(audit, "sample", 0))
    return FORWARD * scored * _setting(audit, "points", 1)


def _setting(part: Part, name: str, default: float) -> float:
    settings: dict[str, Any] = part.settings()
    value = settings.get(name)
    return float(value) if isinstance(value, int | float) else default
