"""Mean cross-entropy per example, in nats per decision, on the forget, retain and test set.

A loss far *above* the retrained model's marks the forget examples as surely as one below it does.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from expunge.audits._evaluate import per_example_scores, sample
from expunge.base.part import Count
from expunge.core.case import Case
from expunge.core.contracts import Audit
from expunge.evidence.estimate import Better
from expunge.evidence.scores import Scores
from expunge.train.evaluation import mean_loss


@dataclass(frozen=True)
class Loss(Audit):
    """Cross-entropy per split; describes, does not judge."""

    retain: Count = 2000
    """Retain examples to score, a fixed random part."""

    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        """Per example the mean loss of its decisions."""
        problem = case.problem
        splits: list[tuple[str, Tensor, Better]] = [
            ("forget", problem.unexposed, "reference"),
            ("retain", sample(problem.retain, self.retain, "retain"), "lower"),
            ("test", problem.test, "lower"),
        ]
        return [
            per_example_scores(
                model,
                problem,
                ids,
                mean_loss,
                metric="loss",
                split=split,
                role="description",
                unit="nats",
                better=better,
                sign=-1,
            )
            for split, ids, better in splits
        ]
