"""Share of sequences that a language model recites word for word.

All of an example's decisions must be right. Under teacher forcing this equals exact greedy completion of the prompt: as
long as every token so far is right, both see the same context, and the first wrong token ends both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from expunge.audits._evaluate import per_example_scores
from expunge.core.case import Case
from expunge.core.contracts import Audit
from expunge.core.objective import Decisions, knows
from expunge.evidence.scores import Role, Scores


@dataclass(frozen=True)
class Recitation(Audit):
    """Exact recitation; always part of a run on text."""

    kinds: ClassVar[frozenset[str]] = frozenset({"tokens"})

    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        """Per example 0 or 1, on the unexposed forget set and on unseen sequences where the task has some."""
        problem = case.problem

        splits: list[tuple[str, Tensor, Role]] = [("forget", problem.unexposed, "knowledge")]
        if len(problem.holdout):
            splits.append(("holdout", problem.holdout, "description"))
        return [
            per_example_scores(
                model,
                problem,
                ids,
                _recited,
                metric="recitation",
                split=split,
                role=role,
                unit="share",
                better="reference",
            )
            for split, ids, role in splits
        ]


def _recited(decisions: Decisions, size: int) -> Tensor:
    return knows(decisions, size).double()
