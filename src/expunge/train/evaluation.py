"""Forward passes in evaluation mode: one number per example, in the order of the ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from expunge.core.data import Batch, Data
from expunge.core.modules import evaluating
from expunge.core.objective import Decisions, Objective, decision_losses, knows, per_example
from expunge.train.loop import in_order

Measure = Callable[[Decisions, int], Tensor]
"""From a batch's decisions and its number of examples to one number per example, `[size]`."""


class Judged(Protocol):
    """Data, and the objective that makes decisions on them: a `Problem`, or `DataWithObjective`."""

    @property
    def data(self) -> Data:
        """Where the examples are."""
        ...

    @property
    def objective(self) -> Objective:
        """How outputs become decisions."""
        ...


class DataWithObjective(NamedTuple):
    """Data and objective where there is no problem."""

    data: Data
    objective: Objective


def evaluate(model: nn.Module, problem: Judged, ids: Tensor, measure: Measure) -> np.ndarray:
    """What `measure` makes of each example's decisions.

    Args:
        model: Run in evaluation mode and without gradients; its modes are as before afterwards.
        problem: Data and objective.
        ids: The examples, `[n]`.
        measure: One number per example; a `[size, ...]` tensor has more of them.

    Returns:
        `[n]` (or `[n, ...]`) float64, in the order of the ids.
    """
    with evaluating(model), torch.no_grad():
        values = [
            measure(problem.objective.decisions(model, batch), batch.size).cpu()
            for batch in in_order(problem.data, ids)
        ]
    return torch.cat(values).double().numpy()


def known(model: nn.Module, problem: Judged, ids: Tensor) -> Tensor:
    """Whether the model gets all decisions of each example right, `[n]` bool on the CPU."""
    return torch.from_numpy(evaluate(model, problem, ids, knows)).bool()


def known_share(model: nn.Module, problem: Judged, ids: Tensor) -> float:
    """The share of these examples that the model knows: accuracy of a classifier, recitation of a language model."""
    return float(known(model, problem, ids).double().mean())


def mean_loss(decisions: Decisions, size: int) -> Tensor:
    """A measure: each example's mean cross-entropy over its decisions, `[size]` float64, in nats."""
    return per_example(decision_losses(decisions).double(), decisions.example, size, mean=True)


def batch_loss(problem: Judged) -> Callable[[nn.Module, Batch], Tensor]:
    """The mean over a batch's examples of their mean cross-entropy, with its graph and in the model's precision."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        decisions = problem.objective.decisions(model, batch)
        return per_example(decision_losses(decisions), decisions.example, batch.size, mean=True).mean()

    return loss
