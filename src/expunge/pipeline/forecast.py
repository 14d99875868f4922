"""Forecast the cost of a run: per-example gradients from the settings, seconds from three measured steps."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from expunge.base.store import Store
from expunge.core.seeding import forked
from expunge.numerics.linops import differentiable
from expunge.pipeline.outstanding import outstanding
from expunge.pipeline.plan import Plan, Stage
from expunge.pipeline.stage_kind import kind_of

OVERHEAD = 0.05
"""Seconds in which a stage reads and writes its files."""


@dataclass(frozen=True)
class StageForecast:
    """A stage with its expected time."""

    stage: Stage
    done: bool
    seconds: float


def forecast(plan: Plan, store: Store) -> list[StageForecast]:
    """Every stage of the plan with its expected seconds; 0 if its output is stored already.

    The rate is measured on three training steps of the plan's own model. Audits count as forward passes. Each method
    says how many gradients it expects to compute. Its other work (a search, a second model) is not known here, so
    expect errors of a factor of 2.

    Args:
        plan: The plan of the run.
        store: Holds the outputs of stages that have run already.

    Returns:
        One forecast per stage, in the order of the plan.
    """
    missing = outstanding(plan, store, plan.stages)
    rate = seconds_per_gradient(plan) if missing else 0.0
    return [
        StageForecast(
            stage,
            stage.key not in missing,
            OVERHEAD + rate * gradients(plan, stage) if stage.key in missing else 0.0,
        )
        for stage in plan.stages
    ]


def seconds_per_gradient(plan: Plan) -> float:
    """Seconds per example of a training step, the fastest of three. Global random state does not change.

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
    # The first of the four steps allocates memory and is slower.
    return min(times[1:]) / batch.size


def gradients(plan: Plan, stage: Stage) -> float:
    """Expected per-example gradients of a stage; a forward pass counts as a third of a gradient."""
    return kind_of(stage.kind).cost(plan, stage)
