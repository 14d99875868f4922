"""How far the outputs moved: divergence from the original in function space, independent of the weights.

KL(original || model) = sum_c p_original(c) log(p_original(c) / p_model(c)) in nats for each decision, then the mean
over an example's decisions: on a sample of retain, on the unexposed forget set and on the test set. On the forget set
also the total variation, half the sum over classes of |p_original - p_model|: the largest difference of the two
models' probabilities over all sets of answers. It is at most 1; the divergence has no bound, and single examples may
dominate its mean.

Two models of the same function, such as `symmetry` makes, have distance zero. This audit gives no verdict: a retrained
model differs from the original too, above all on the forget set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from expunge.audits._evaluate import per_example_scores
from expunge.base.part import Count
from expunge.core.case import Case
from expunge.core.contracts import Audit
from expunge.core.decisions import Decisions, per_example
from expunge.core.modules import frozen_copy
from expunge.core.objective import DECISIONS
from expunge.core.problem import Problem
from expunge.evidence.scores import Scores
from expunge.train.evaluation import sample
from expunge.train.loop import in_order

Compare = Callable[[Tensor, Tensor], Tensor]
"""Maps the original's and the model's log-probabilities, `[n, c]` each, to one number per decision `[n]`."""


@dataclass(frozen=True)
class FunctionDistance(Audit):
    """Divergence of the outputs from the original's; predicts, does not judge."""

    needs: ClassVar[frozenset[str]] = frozenset({DECISIONS})

    after_attack: ClassVar[bool] = False

    retain: Count = 2000
    """Retain examples to compare on, a fixed random part."""

    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        """The mean over each example's decisions."""
        problem, original = case.problem, frozen_copy(case.original)
        kept = sample(problem.retain, self.retain, "retain")
        entries: list[tuple[str, Compare, str, Tensor, str]] = [
            ("function_distance", divergence, "forget", problem.unexposed, "nats"),
            ("function_distance", divergence, "retain", kept, "nats"),
            ("function_distance", divergence, "test", problem.test, "nats"),
            ("total_variation", total_variation, "forget", problem.unexposed, "share"),
        ]
        return [
            per_example_scores(
                model,
                problem,
                ids,
                _beside(original, problem, ids, compare),
                metric=metric,
                split=split,
                role="predictor",
                unit=unit,
                better="reference",
            )
            for metric, compare, split, ids, unit in entries
        ]


def divergence(original: Tensor, model: Tensor) -> Tensor:
    """KL(original || model) per decision, `[n]`, in nats, from log-probabilities `[n, c]`."""
    # Rounding may make a zero negative.
    return (original.exp() * (original - model)).sum(1).clamp(min=0)


def total_variation(original: Tensor, model: Tensor) -> Tensor:
    """Half the L1 distance of the probabilities per decision, `[n]` in [0, 1], from log-probabilities `[n, c]`."""
    return (original.exp() - model.exp()).abs().sum(1) / 2


def _beside(original: nn.Module, problem: Problem, ids: Tensor, compare: Compare) -> Callable[[Decisions, int], Tensor]:
    """A measure for `evaluate`, which calls it batch by batch: the original runs on the same batches."""
    batches = in_order(problem.data, ids)

    def measure(decisions: Decisions, size: int) -> Tensor:
        reference = problem.objective.decisions(original, next(batches)).logits.to(decisions.logits.device)
        distances = compare(*(logits.double().log_softmax(1) for logits in (reference, decisions.logits)))
        return per_example(distances, decisions.example, size, mean=True)

    return measure
