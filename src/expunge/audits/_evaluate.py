"""Forward passes in evaluation mode: one number per example, in the order of the ids."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from expunge.core.generators import generator_of
from expunge.core.modules import evaluating
from expunge.core.objective import Decisions
from expunge.core.problem import Problem
from expunge.evidence.estimate import Better
from expunge.evidence.scores import Role, Scores
from expunge.train.loop import in_order


def evaluate(
    model: nn.Module, problem: Problem, ids: Tensor, measure: Callable[[Decisions, int], Tensor]
) -> np.ndarray:
    """What `measure` makes of each example's decisions, `[len(ids)]` float64; its modes are left as they were."""
    with evaluating(model), torch.no_grad():
        found = [
            measure(problem.objective.decisions(model, batch), batch.size) for batch in in_order(problem.data, ids)
        ]
    return torch.cat(found).double().cpu().numpy()


def measured(model: nn.Module, problem: Problem, ids: Tensor) -> dict[str, np.ndarray]:
    """The objective's metrics for each example, by name, `[len(ids)]` float64."""
    with evaluating(model), torch.no_grad():
        batches = [problem.objective.measure(model, batch) for batch in in_order(problem.data, ids)]
    return {name: torch.cat([batch[name] for batch in batches]).double().cpu().numpy() for name in batches[0]}


def losses(model: nn.Module, problem: Problem, ids: Tensor) -> np.ndarray:
    """The training loss of each example, `[len(ids)]` float64."""
    with evaluating(model), torch.no_grad():
        batches = [problem.objective.losses(model, batch) for batch in in_order(problem.data, ids)]
    return torch.cat(batches).double().cpu().numpy()


def sample(ids: Tensor, count: int, name: str) -> Tensor:
    """A fixed random part of the ids, the same for every model and seed, in increasing order."""
    if len(ids) <= count:
        return ids
    generator = generator_of(0, "sample", name)
    return ids[torch.randperm(len(ids), generator=generator)[:count]].sort().values


def per_example_scores(
    model: nn.Module,
    problem: Problem,
    ids: Tensor,
    measure: Callable[[Decisions, int], Tensor],
    *,
    metric: str,
    split: str,
    role: Role,
    unit: str,
    better: Better,
    sign: int = 1,
) -> Scores:
    """Evaluate and wrap: the ids travel with the values, and the groups where the data have them."""
    values = evaluate(model, problem, ids, measure)
    group = None if problem.data.groups is None else problem.data.group_of(ids).numpy()
    return Scores(metric, split, values, ids.numpy(), role, unit, better, group=group, sign=sign)
