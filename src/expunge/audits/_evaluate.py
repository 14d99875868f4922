"""Scores of audits: a fixed sample of the ids, and a measure of each example."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from expunge.core.generators import generator_of
from expunge.core.problem import Problem
from expunge.evidence.estimate import Better
from expunge.evidence.scores import Role, Scores
from expunge.train.evaluation import Measure, evaluate


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
    measure: Measure,
    *,
    metric: str,
    split: str,
    role: Role,
    unit: str,
    better: Better,
    sign: int = 1,
) -> Scores:
    """Evaluate a measure and return the values as `Scores`, with the ids and, if the data have them, the groups."""
    values = evaluate(model, problem, ids, measure)
    group = None if problem.data.groups is None else problem.data.group_of(ids).numpy()
    return Scores(metric, split, values, ids.numpy(), role, unit, better, group=group, sign=sign)
