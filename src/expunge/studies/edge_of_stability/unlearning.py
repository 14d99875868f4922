"""Descent on retained and ascent on forgotten examples, in full batches, with readings of the retained sharpness."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import suppress
from itertools import product, repeat
from typing import NamedTuple

import torch
from torch import nn

from expunge.base.errors import RunError
from expunge.studies.edge_of_stability.setup import Examples, squared
from expunge.train.loop import PairBatch, fit
from expunge.train.monitors import SharpnessMonitor

FACTORS = (0.25, 0.5, 1.0, 2.0)
"""Step sizes of unlearning, in units of the step size of training."""
MIXES = (0.05, 0.2)
"""Weights of the ascent; the descent has 1 minus this."""
SHARE, GONE, EVERY = 8, 0.5, 5
"""One in `SHARE` examples is forgotten; the set counts as forgotten at this squared error, that of an output of 0;
steps between readings."""


class UnlearningRun(NamedTuple):
    """The result of one run of unlearning."""

    factor: float
    highest: float
    """Highest sharpness of the retained loss, times step size and weight of the descent, divided by 2."""
    damage: float
    """Retained loss at the end minus that at the start; for a run that diverged, the last finite loss counts."""


def unlearned(
    model: nn.Sequential, batch: Examples, rate: float, most: int, generator: torch.Generator
) -> list[UnlearningRun]:
    """Run every step size with every mix, from the same model, until the forget set is gone or the steps run out."""
    order = torch.randperm(batch.size, generator=generator)
    forget, retain = (batch.at(ids) for ids in (order[: batch.size // SHARE], order[batch.size // SHARE :]))
    return [
        _run(model, retain, forget, rate, factor, ascent_weight, most)
        for factor, ascent_weight in product(FACTORS, MIXES)
    ]


def _run(
    model: nn.Sequential,
    retain: Examples,
    forget: Examples,
    rate: float,
    factor: float,
    ascent_weight: float,
    most: int,
) -> UnlearningRun:
    student = copy.deepcopy(model)
    optimizer = torch.optim.SGD(student.parameters(), lr=factor * rate)
    monitor = SharpnessMonitor(squared, [retain], optimizer, every=EVERY)
    monitor(0, student)

    def loss(pair: PairBatch) -> torch.Tensor:
        return (1 - ascent_weight) * squared(student, pair.retain) - ascent_weight * squared(student, pair.forget)  # type: ignore[arg-type]

    def until_gone() -> Iterator[PairBatch]:
        for pair in repeat(PairBatch(retain, forget), most):  # type: ignore[arg-type]
            with torch.no_grad():
                if float(squared(student, forget)) >= GONE:
                    return
            yield pair

    # A run that diverges ends with its last finite reading.
    with suppress(RunError):
        fit(list(student.parameters()), loss, until_gone(), optimizer, on_step=lambda step, _: monitor(step, student))
    with torch.no_grad():
        end = float(squared(student, retain))
    losses = [value for value in (*monitor.losses, end) if math.isfinite(value)]
    ratios = [
        (1 - ascent_weight) * s / e for s, e in zip(monitor.sharpness, monitor.edges, strict=True) if math.isfinite(s)
    ]
    return UnlearningRun(factor, max(ratios), losses[-1] - losses[0])
