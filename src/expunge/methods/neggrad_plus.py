"""Descend on the retain set and ascend on the forget set in the same step (NegGrad+, Kurmanji et al., 2302.09880).

Minimises alpha * CE(retain) - (1 - alpha) * CE(forget), one batch of each per step, forget batches cycled over a pass
of the retain set. The second term has no lower bound; alpha close to 1 keeps it in check. The code of 2505.22310 has
another method under this name: whole epochs of plain ascent alternate with whole epochs of descent, unweighted.

Cost: one gradient per retain example and epoch, and `forget_batch_size` for each retain batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from expunge.base.part import Share
from expunge.core.objective import loss
from expunge.core.problem import Problem
from expunge.methods._descent import PairedDescent
from expunge.methods.scrub import CITE
from expunge.train.loop import Pair


@dataclass(frozen=True)
class NegGradPlus(PairedDescent):
    """Weighted descent on retain and ascent on forget."""

    cite: ClassVar[str] = CITE
    paper: ClassVar[str] = "NegGrad+, 2023"

    alpha: Share = 0.95
    """Weight of the retain loss; the forget loss has what is left to 1."""

    def pair_loss(self, student: nn.Module, problem: Problem, seed: int) -> Callable[[Pair], Tensor]:
        """Weighted difference of the two losses."""
        objective = problem.objective

        def step(pair: Pair) -> Tensor:
            kept = loss(objective.decisions(student, pair.retain))
            return self.alpha * kept - (1 - self.alpha) * loss(objective.decisions(student, pair.forget))

        return step
