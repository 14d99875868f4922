"""Whether an original knows its own training data: one that does not has nothing to forget."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from expunge.core.decisions import share_right
from expunge.core.generators import generator_of
from expunge.core.objective import CLASSES, IGNORE, TOKENS
from expunge.core.problem import Problem
from expunge.train.evaluation import evaluate

EXAMPLES = 64
"""Retain examples that are judged."""


def no_better_than_chance(original: nn.Module, problem: Problem) -> str:
    """A warning if the original knows its retain set no better than one answer to everything would.

    Args:
        original: The model that was trained on the retain set.
        problem: Its problem. Only classes and tokens have a most common answer; others are not judged.

    Returns:
        A sentence; empty if the original's share of right decisions is higher by two standard errors or more.
    """
    if not problem.objective.provides & {CLASSES, TOKENS}:
        return ""
    order = torch.randperm(len(problem.retain), generator=generator_of(0, "chance"))
    ids = problem.retain[order[:EXAMPLES]]
    right, chance = evaluate(original, problem, ids, share_right), _most_common(problem.data.targets[ids])
    if right.mean() > chance + 2 * right.std() / math.sqrt(len(right)):
        return ""
    return (
        f"warning: the model gets {100 * right.mean():.1f} % of {len(ids)} retained examples right, and the most "
        f"common answer alone gets {100 * chance:.1f} %: it does not know its own training data, so "
        "nothing can be forgotten; check labels, preprocessing and weights"
    )


def _most_common(targets: Tensor) -> float:
    """The share of the most common target among those that are decisions."""
    decided = targets[targets != IGNORE]
    return float(decided.unique(return_counts=True)[1].max()) / len(decided)
