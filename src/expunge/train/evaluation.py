"""Forward passes in evaluation mode: one number per example, in the order of the ids."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from expunge.core.data import Batch, Data
from expunge.core.decisions import Decisions, knows
from expunge.core.generators import generator_of
from expunge.core.modules import evaluating, first_parameter
from expunge.core.objective import Objective
from expunge.core.once import once_per_batch
from expunge.train.loop import in_order

Measure = Callable[[Decisions, int], Tensor]
"""From a batch's decisions and its number of examples to one number per example, `[size]`."""


class Judged(Protocol):
    """Data with the objective that makes decisions on them: a `Problem`, or `DataWithObjective`."""

    @property
    def data(self) -> Data:
        """The examples."""
        ...

    @property
    def objective(self) -> Objective:
        """The objective that judges models."""
        ...


class DataWithObjective(NamedTuple):
    """Data and objective without a problem."""

    data: Data
    objective: Objective


def evaluate(model: nn.Module, problem: Judged, ids: Tensor, measure: Measure) -> np.ndarray:
    """Apply `measure` to each example's decisions.

    Args:
        model: Runs in evaluation mode without gradients; its modes are restored afterwards.
        problem: Data and objective.
        ids: The examples, `[n]`.
        measure: Gives one number per example `[size]`, or several `[size, ...]`.

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
    """The quantity of attack curves, `[n]` float64; larger if the model knows more: see `Objective.known`."""
    return _over(model, problem, ids, lambda batch: problem.objective.known(model, batch))


def outputs(model: nn.Module, problem: Judged, ids: Tensor) -> np.ndarray:
    """The model's predictions, `[n, ...]` float64."""
    return _over(model, problem, ids, lambda batch: problem.objective.prediction(model, batch))


def measured(model: nn.Module, problem: Judged, ids: Tensor) -> dict[str, np.ndarray]:
    """The objective's metrics of each example, by name, `[n]` float64 each."""
    return _by_name(model, problem, ids, problem.objective.measure)


def classes_given(model: nn.Module, problem: Judged, ids: Tensor) -> np.ndarray:
    """The class that a classifier gives each example, `[n]` int64."""
    given = _over(model, problem, ids, lambda batch: problem.objective.decisions(model, batch).logits.argmax(1))
    return given.astype(np.int64)


def answers(model: nn.Module, problem: Judged, ids: Tensor) -> Any:
    """What the model answers to unseen examples, for `baselines`: see `Objective.answers`."""
    with evaluating(model), torch.no_grad():
        return problem.objective.answers(model, in_order(problem.data, ids))


def baselines(model: nn.Module, problem: Judged, ids: Tensor, unseen: Any) -> dict[str, np.ndarray]:
    """What answers independent of the input would score, by metric, `[n]` float64 each: see `Objective.baseline`."""
    return _by_name(model, problem, ids, lambda model, batch: problem.objective.baseline(model, batch, unseen))


def by_label(model: nn.Module, problem: Judged, ids: Tensor) -> tuple[np.ndarray, Tensor, np.ndarray] | None:
    """Utility by label, see `Objective.by_label`.

    Returns:
        Values `[m]` float64, the id of each value's example `[m]`, and its label `[m]`; `None` without labels.
    """
    with evaluating(model), torch.no_grad():
        batches = [(batch.ids, problem.objective.by_label(model, batch)) for batch in in_order(problem.data, ids)]
    parts = [
        (part.values.cpu(), own[part.example.cpu()], part.label.cpu()) for own, part in batches if part is not None
    ]
    if not parts:
        return None
    values, examples, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    return values.double().numpy(), examples, labels.numpy()


def skill(model: nn.Module, problem: Judged, ids: Tensor) -> float:
    """Mean utility beyond its baseline on unseen examples: close to 0 for answers that do not depend on the input.

    An objective without a baseline gives infinity, because its models cannot be told from such answers.
    """
    metric = next(metric for metric in problem.objective.metrics if metric.utility)
    with once_per_batch(model):
        controls = baselines(model, problem, ids, answers(model, problem, ids))
        if metric.name not in controls:
            return math.inf
        return metric.sign * float(np.mean(measured(model, problem, ids)[metric.name] - controls[metric.name]))


def sample(ids: Tensor, count: int, name: str) -> Tensor:
    """A fixed random part of the ids, the same for every model and seed, in increasing order."""
    if len(ids) <= count:
        return ids
    generator = generator_of(0, "sample", name)
    return ids[torch.randperm(len(ids), generator=generator)[:count]].sort().values


def _by_name(
    model: nn.Module, problem: Judged, ids: Tensor, values: Callable[[nn.Module, Batch], dict[str, Tensor]]
) -> dict[str, np.ndarray]:
    with evaluating(model), torch.no_grad():
        batches = [values(model, batch) for batch in in_order(problem.data, ids)]
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
    """A differentiable loss function: the mean over a batch's examples, in the model's precision."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return problem.objective.losses(model, batch).to(first_parameter(model).dtype).mean()

    return loss
