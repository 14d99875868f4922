"""Share of right decisions on the forget, retain and test set, and on the hold-out where the task has one.

On a classifier the forget set's accuracy is knowledge; it is judged against retrained models, not against chance. On a
language model it is next-token accuracy, and `recitation` says what is known.

Where a task planted corruption and kept the true labels, `healed` is accuracy against those on all corrupted training
examples, discovered or not, as the model was trained on them: with their trigger, if they have one (2505.17730).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from expunge.audits._evaluate import per_example_scores, sample
from expunge.base.part import Count
from expunge.core.case import Case
from expunge.core.contracts import Audit
from expunge.core.objective import Decisions, correct, per_example
from expunge.core.problem import Problem
from expunge.evidence.estimate import Better
from expunge.evidence.scores import Role, Scores


@dataclass(frozen=True)
class Accuracy(Audit):
    """Accuracy per split; always part of a run."""

    retain: Count = 2000
    """Retain examples to score, a fixed random part."""

    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        """Per example the share of its decisions that are right: 0 or 1 for a classifier."""
        problem = case.problem
        forget_role: Role = "knowledge" if problem.data.kind == "classes" else "description"
        splits: list[tuple[str, Tensor, Role, Better]] = [
            ("forget", problem.unexposed, forget_role, "reference"),
            ("retain", sample(problem.retain, self.retain, "retain"), "description", "higher"),
            ("test", problem.test, "utility", "higher"),
        ]
        if len(problem.holdout):
            splits.append(("holdout", problem.holdout, "description", "reference"))
        found = [_scores(model, problem, ids, "accuracy", split, role, better) for split, ids, role, better in splits]
        if len(problem.corrupted) and problem.true_targets is not None:
            true = problem.data.relabelled(problem.corrupted, problem.true_targets[problem.corrupted])
            asked = replace(problem, data=true)
            found.append(_scores(model, asked, problem.corrupted, "healed", "corrupted", "description", "higher"))
        return found


def _scores(
    model: nn.Module, problem: Problem, ids: Tensor, metric: str, split: str, role: Role, better: Better
) -> Scores:
    return per_example_scores(
        model, problem, ids, _share_right, metric=metric, split=split, role=role, unit="share", better=better
    )


def _share_right(decisions: Decisions, size: int) -> Tensor:
    return per_example(correct(decisions).double(), decisions.example, size, mean=True)
