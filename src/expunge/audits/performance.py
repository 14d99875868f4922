"""The objective's metrics on the forget, retain and test set, and on the hold-out if the task has one.

The objective's knowledge metric is judged on the forget set, against retrained models and not against chance; its
utility metric on the test set. For a classifier both are accuracy. For a language model knowledge is exact recitation
and utility is next-token accuracy. For numbers both are the explained share of the variance.

If a task planted corruption and kept the true targets, `healed` is the utility metric against the true targets on all
corrupted training examples, discovered or not. The inputs are those of training, with their trigger if they have one
(2505.17730).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from expunge.audits._evaluate import sample
from expunge.base.part import Count
from expunge.core.case import Case
from expunge.core.contracts import Audit
from expunge.core.objective import Metric
from expunge.core.problem import Problem
from expunge.evidence.estimate import Better
from expunge.evidence.scores import Role, Scores
from expunge.train.evaluation import measured


@dataclass(frozen=True)
class Performance(Audit):
    """Every metric of the objective, per split; always part of a run."""

    retain: Count = 2000
    """Retain examples to score, a fixed random part."""

    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        """The value of each metric per example."""
        problem = case.problem
        splits = {
            "forget": problem.unexposed,
            "retain": sample(problem.retain, self.retain, "retain"),
            "test": problem.test,
            "holdout": problem.holdout,
        }
        values = {split: measured(model, problem, ids) for split, ids in splits.items() if len(ids)}
        scores = [
            _scores(metric, split, values[split][metric.name], splits[split], problem)
            for metric in problem.objective.metrics
            for split in values
            if metric.utility or not metric.knowledge or split in ("forget", "holdout")
        ]
        return [*scores, *_healed(model, problem)]


def _scores(metric: Metric, split: str, values: np.ndarray, ids: Tensor, problem: Problem) -> Scores:
    role: Role = "description"
    if split == "forget" and metric.knowledge:
        role = "knowledge"
    if split == "test" and metric.utility:
        role = "utility"
    better: Better = metric.better if split in ("retain", "test") else "reference"
    group = None if problem.data.groups is None else problem.data.group_of(ids).numpy()
    return Scores(
        metric.name, split, values, ids.numpy(), role, metric.unit, better, group=group, sign=metric.sign,
        required=role == "knowledge", bound=metric.bound,
    )  # fmt: skip


def _healed(model: nn.Module, problem: Problem) -> Iterator[Scores]:
    ids, true = problem.corrupted, problem.true_targets
    if not len(ids) or true is None:
        return
    corrected = replace(problem, data=problem.data.relabelled(ids, true[ids]))
    metric = next(metric for metric in problem.objective.metrics if metric.utility)
    values = measured(model, corrected, ids)[metric.name]
    group = None if problem.data.groups is None else problem.data.group_of(ids).numpy()
    yield Scores(
        "healed", "corrupted", values, ids.numpy(), "description", metric.unit, metric.better, group=group,
        sign=metric.sign,
    )  # fmt: skip
