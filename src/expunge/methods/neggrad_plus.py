"""Descend on the retain set and ascend on the forget set in the same step (NegGrad+, Kurmanji et al., 2302.09880).

Minimises alpha * CE(retain) - (1 - alpha) * CE(forget), one batch of each per step, forget batches cycled over a pass
of the retain set. The second term has no lower bound; alpha close to 1 limits it. The paper's retain term is CE, the
default; `retain` = `kl` replaces it by KL(original || model).

The code of 2505.22310 has another method under this name, here with `alternate`: each epoch is a pass over the forget
set that maximises CE(forget), then a pass over the retain set that minimises CE(retain), both unweighted, with one
optimiser. There, too, only the small number of steps limits the ascent: one pass over a small set per epoch.

Cost: one gradient per retain example and epoch, and one per example of the forget batch with each retain batch. The
forget set is cycled in batches of `forget_batch_size`; the last batch of a pass holds the rest. With
`alternate`, one per forget example and epoch instead of the latter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from expunge.base.part import Share
from expunge.core.data import Batch
from expunge.core.job import Job
from expunge.methods._descent import RetainingDescent
from expunge.train.loop import PairBatch


@dataclass(frozen=True)
class NegGradPlus(RetainingDescent):
    """Weighted descent on retain and ascent on forget."""

    cite: ClassVar[str] = "kurmanji2023scrub"
    paper: ClassVar[str] = "NegGrad+, 2023"
    effort: ClassVar[str] = "(R + B) E"

    alpha: Share = 0.95
    """Weight of the retain loss; that of the forget loss is 1 - alpha."""
    alternate: bool = False
    """Whether passes over the two sets alternate, as in 2505.22310; alpha is then not used."""

    @property
    def ascent(self) -> float | None:
        """1 - alpha with SGD and both cross-entropies in one step; `None` otherwise, as Adam scales steps by weight."""
        plain = self.optimizer == "sgd" and self.retain == "ce" and not self.alternate
        return 1 - self.alpha if plain else None

    def expected_gradients(self, retain: int, forget: int) -> float:
        """The cost of the pairs, or of one pass over both sets in each epoch."""
        return self.epochs * (retain + forget) if self.alternate else super().expected_gradients(retain, forget)

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Both losses in every step, or pass by pass."""
        if not self.alternate:
            return super().apply(student, job)

        def ascent(batch: Batch) -> Tensor:
            return -job.problem.objective.loss(student, batch)

        return self.descend_in_turn(
            student,
            job,
            forget_loss=ascent,
            retain_loss=self.retain_loss(student, job),
            forget_epochs=self.epochs,
            forget_batch_size=self.forget_batch_size,
        )

    def pair_loss(self, student: nn.Module, job: Job) -> Callable[[PairBatch], Tensor]:
        """Weighted difference of the two losses."""
        objective, retain_loss = job.problem.objective, self.retain_loss(student, job)

        def step(pair: PairBatch) -> Tensor:
            kept = retain_loss(pair.retain)
            return self.alpha * kept - (1 - self.alpha) * objective.loss(student, pair.forget)

        return step
