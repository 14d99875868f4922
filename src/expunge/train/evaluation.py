"""Forward passes in evaluation mode: one number per example, in the order of the ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from expunge.core.data import Batch, Data
from expunge.core.modules import evaluating, first_parameter
from expunge.core.objective import Decisions, Objective, knows
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
        """What models are judged by."""
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

    Raises:
        MissingError: The objective makes no decisions.
    """
    objective = problem.objective
    return _over(model, problem, ids, lambda batch: measure(objective.decisions(model, batch), batch.size))


def losses(model: nn.Module, problem: Judged, ids: Tensor) -> np.ndarray:
    """The training loss of each example, `[n]` float64, in the objective's unit."""
    return _over(model, problem, ids, lambda batch: problem.objective.losses(model, batch))


def tracked(model: nn.Module, problem: Judged, ids: Tensor) -> np.ndarray:
    """What attack curves follow, `[n]` float64, larger where more is known: see `Objective.known`."""
    return _over(model, problem, ids, lambda batch: problem.objective.known(model, batch))


def outputs(model: nn.Module, problem: Judged, ids: Tensor) -> np.ndarray:
    """The model's predictions, `[n, ...]` float64."""
    return _over(model, problem, ids, lambda batch: problem.objective.prediction(model, batch))


def measured(model: nn.Module, problem: Judged, ids: Tensor) -> dict[str, np.ndarray]:
    """The objective's metrics of each example, by name, `[n]` float64 each; one forward pass serves all of them."""
    with evaluating(model), torch.no_grad():
        batches = [problem.objective.measure(model, batch) for batch in in_order(problem.data, ids)]
    return {name: torch.cat([batch[name].cpu() for batch in batches]).double().numpy() for name in batches[0]}


def _over(model: nn.Module, problem: Judged, ids: Tensor, values: Callable[[Batch], Tensor]) -> np.ndarray:
    with evaluating(model), torch.no_grad():
        rows = [values(batch).cpu() for batch in in_order(problem.data, ids)]
    return torch.cat(rows).double().numpy()


def known(model: nn.Module, problem: Judged, ids: Tensor) -> Tensor:
    """Whether the model gets all decisions of each example right, `[n]` bool on the CPU."""
    return torch.from_numpy(evaluate(model, problem, ids, knows)).bool()


def known_share(model: nn.Module, problem: Judged, ids: Tensor) -> float:
    """The share of these examples that the model knows: accuracy of a classifier, recitation of a language model."""
    return float(known(model, problem, ids).double().mean())


def batch_loss(problem: Judged) -> Callable[[nn.Module, Batch], Tensor]:
    """The mean over a batch's examples of their losses, with its graph and in the model's precision."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return problem.objective.losses(model, batch).to(first_parameter(model).dtype).mean()

    return loss
