"""What a run will cost before it runs: per-example gradients from the settings, seconds from three measured steps."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from expunge.base.record import Store
from expunge.core.seeding import forked
from expunge.numerics.linops import differentiable
from expunge.pipeline.plan import Plan, Stage
from expunge.pipeline.stage_kind import kind_of

OVERHEAD = 0.05
"""Seconds that a stage takes to read and write its files."""


@dataclass(frozen=True)
class StageForecast:
    """A stage with what it is expected to take."""

    stage: Stage
    done: bool
    seconds: float


def forecast(plan: Plan, store: Store) -> list[StageForecast]:
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
        StageForecast(stage, done[stage.key], 0.0 if done[stage.key] else OVERHEAD + rate * gradients(plan, stage))
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
    """Per-example gradients that a stage is expected to take, a forward pass counted as a third of one."""
    return kind_of(stage.kind).cost(plan, stage)
