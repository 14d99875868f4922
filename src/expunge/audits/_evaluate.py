"""Scores of audits: a measure of each example."""

from __future__ import annotations

from torch import Tensor, nn

from expunge.core.problem import Problem
from expunge.evidence.estimate import Better
from expunge.evidence.scores import Role, Scores
from expunge.train.evaluation import Measure, evaluate


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
