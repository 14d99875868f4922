"""The training loss per example on the forget, retain and test set: for classes and tokens cross-entropy in nats.

A loss far *above* that of the retrained model reveals the forget examples just as a loss below it does.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from expunge.base.part import Count
from expunge.core.case import Case
from expunge.core.contracts import Audit
from expunge.evidence.estimate import Better
from expunge.evidence.scores import Scores
from expunge.train.evaluation import losses, sample


@dataclass(frozen=True)
class Loss(Audit):
    """Loss per split; it describes and does not judge."""

    retain: Count = 2000
    """Retain examples to score, a fixed random part."""

    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        """The loss of each example; with several decisions, their mean."""
        problem = case.problem
        splits: list[tuple[str, Tensor, Better]] = [
            ("forget", problem.unexposed, "reference"),
            ("retain", sample(problem.retain, self.retain, "retain"), "lower"),
            ("test", problem.test, "lower"),
        ]
        groups = None if problem.data.groups is None else problem.data.groups.numpy()
        return [
            Scores(
                "loss",
                split,
                losses(model, problem, ids),
                ids.numpy(),
                "description",
                problem.objective.loss_unit,
                better,
                group=None if groups is None else groups[ids.numpy()],
                sign=-1,
            )
            for split, ids, better in splits
        ]
