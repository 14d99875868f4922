"""Measure a model during training without changing it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.base.seeds import derive
from expunge.core.data import Batch, Data
from expunge.core.modules import evaluating
from expunge.core.seeding import forked
from expunge.numerics.batches import rows
from expunge.train.loop import evaluation_size

MeanLoss = Callable[[nn.Module, Any], Tensor]
"""Maps the module and a batch to the batch's mean loss, a scalar."""


def fixed(batches: Iterable[Any]) -> Sequence[Any]:
    """The batches as a list, so that every measurement uses the same examples.

    Raises:
        SpecError: There is no batch.
    """
    batch_list = list(batches)
    if not batch_list:
        raise SpecError("there is none", where="batches", allowed="at least one batch to measure on")
    return batch_list


def sample(data: Data, ids: Tensor, count: int, seed: int) -> list[Batch]:
    """Batches of a fixed random part of the examples, at most `count` of them."""
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(derive(seed, "monitor")))
    return [data.batch(chunk) for chunk in ids[order[:count]].sort().values.split(evaluation_size(data))]


def mean_cross_entropy(data: Data) -> MeanLoss:
    """The mean cross-entropy over a batch's decisions, as training minimises it."""
    objective = data.objective
    return lambda model, batch: objective.loss(model, batch)


def require_every(every: int) -> None:
    """Check that an interval is at least one step.

    Raises:
        SpecError: It is below 1.
    """
    if every < 1:
        raise SpecError(f"every = {every}", where="monitor", allowed="1 or more steps")


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and a copy of the random state: modes and random state are restored afterwards."""
    with evaluating(model), forked():
        yield


def mean_over(mean_loss: MeanLoss, model: nn.Module, batches: Sequence[Any]) -> float:
    """The mean loss over all examples; NaN if it is not finite."""
    with torch.no_grad():
        total = sum(float(mean_loss(model, batch)) * rows(batch) for batch in batches)
    mean = total / sum(rows(batch) for batch in batches)
    return mean if math.isfinite(mean) else math.nan
