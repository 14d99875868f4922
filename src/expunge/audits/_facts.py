"""The facts in answers, apart from the words around them: an objective that also measures these alone.

Where the data name the fact in an answer, such as a town, `value_recall` is 1 if the model gives all of its tokens
after the right words before it, and `value_probability` is the geometric mean of their probabilities. The words around
facts are the same for all, so retrained models know them, too. Only memory gives the facts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from expunge.core.data import Batch
from expunge.core.objective import Metric
from expunge.core.problem import Problem
from expunge.train.loop import in_order

NAMES = {"recitation": "value_recall", "answer_probability": "value_probability"}
"""Metrics of the objective that are measured on facts -> their names there."""
FACTS = (
    Metric("value_recall", knowledge=True),
    Metric("value_probability", knowledge=True, required=False),
)


@dataclass(frozen=True)
class WithFacts:
    """An objective's metrics, and recitation and probability of facts; NaN for a text without a fact."""

    problem: Problem

    @property
    def objective(self) -> Any:
        """The problem's own, of next tokens."""
        return self.problem.objective

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Those of the objective, and those of facts."""
        return (*self.objective.metrics, *FACTS)

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Every metric of each example, `[b]`."""
        facts = self._facts_of(batch)
        own: dict[str, Tensor] = self.objective.measure(model, batch)
        return own | self._named(facts, self.objective.measure(model, facts))

    def answers(self, model: nn.Module, batches: Iterable[Batch]) -> tuple[Any, Any]:
        """What the model answers to unseen examples, and where a fact is asked for; there the hold-out counts, too."""
        unseen = list(batches)
        of_facts = map(self._facts_of, [*unseen, *in_order(self.problem.data, self.problem.holdout)])
        asked = [batch for batch in of_facts if (batch.targets != self.objective.ignore).any()]
        return self.objective.answers(model, unseen), self.objective.answers(model, asked)

    def baseline(self, model: nn.Module, batch: Batch, answers: tuple[Any, Any]) -> dict[str, Tensor]:
        """What answers independent of the input would score, by metric, `[b]`."""
        facts = self._facts_of(batch)
        own: dict[str, Tensor] = self.objective.baseline(model, batch, answers[0])
        return own | self._named(facts, self.objective.baseline(model, facts, answers[1]))

    def _facts_of(self, batch: Batch) -> Batch:
        """The batch with no decision but the tokens of facts."""
        values = self.problem.data.values
        assert values is not None
        decided = values[batch.ids][:, : batch.targets.shape[1]]
        return batch._replace(targets=torch.where(decided, batch.targets, self.objective.ignore))

    def _named(self, facts: Batch, values: dict[str, Tensor]) -> dict[str, Tensor]:
        has_fact = (facts.targets != self.objective.ignore).any(1)
        return {
            name: values[own].masked_fill(~has_fact.to(values[own].device), torch.nan) for own, name in NAMES.items()
        }


def judge_of(problem: Problem) -> Any:
    """The problem's objective; with facts, if the data name them."""
    known = {metric.name for metric in problem.objective.metrics}
    return problem.objective if problem.data.values is None or not NAMES.keys() <= known else WithFacts(problem)
