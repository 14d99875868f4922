"""Measuring a model that is being trained, without a trace."""

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

_BATCH = 512
MeanLoss = Callable[[nn.Module, Any], Tensor]
"""From the module and a batch, the batch's mean loss as a scalar."""


def fixed(batches: Iterable[Any]) -> Sequence[Any]:
    """The batches as a list, so that every measurement is of the same examples.

    Raises:
        SpecError: There is none.
    """
    found = list(batches)
    if not found:
        raise SpecError("there is none", where="batches", allowed="at least one batch to measure on")
    return found


def sample(data: Data, ids: Tensor, count: int, seed: int) -> list[Batch]:
    """Batches of a fixed random part of the examples, at most `count` of them."""
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(derive(seed, "monitor")))
    return [data.batch(chunk) for chunk in ids[order[:count]].sort().values.split(_BATCH)]


def mean_cross_entropy(data: Data) -> MeanLoss:
    """The mean cross-entropy over a batch's decisions, as training minimises it."""
    objective = data.objective
    return lambda model, batch: objective.loss(model, batch)


def require_every(every: int) -> None:
    """Refuse an interval that is no positive number.

    Raises:
        SpecError: It is not.
    """
    if every < 1:
        raise SpecError(f"every = {every}", where="monitor", allowed="1 or more steps")


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and a random state that is put back, whatever the loss draws."""
    with evaluating(model), forked():
        yield


def mean_over(mean_loss: MeanLoss, model: nn.Module, batches: Sequence[Any]) -> float:
    """The mean loss over all examples; NaN where it is not finite."""
    with torch.no_grad():
        total = sum(float(mean_loss(model, batch)) * rows(batch) for batch in batches)
    mean = total / sum(rows(batch) for batch in batches)
    return mean if math.isfinite(mean) else math.nan
