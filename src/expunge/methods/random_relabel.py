"""Learn random wrong answers on the forget set and right ones on the retain set (Graves et al., 2021; 2505.22310).

Minimises CE(retain) + weight * CE(forget, y'), with y' uniform over the wrong classes and drawn anew at every
step. For a language model y' is a uniform wrong token at each position that is a decision. CE on retain is the sources'
term and the default; `retain` = `kl` replaces it by KL(original || model).

Cost: one gradient per retain example and epoch, and one per example of the forget batch with each retain batch. The
forget set is cycled in batches of `forget_batch_size`; the last batch of a pass holds the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from expunge.base.part import Positive
from expunge.core.data import Batch
from expunge.core.job import Job
from expunge.methods._descent import RetainingDescent
from expunge.train.loop import PairBatch


@dataclass(frozen=True)
class RandomRelabel(RetainingDescent):
    """Random relabelling, both losses in one step."""

    needs: ClassVar[frozenset[str]] = frozenset({"relabel"})
    cite: ClassVar[str] = "graves2021amnesiac"
    paper: ClassVar[str] = "amnesiac learning, 2021"
    effort: ClassVar[str] = "(R + B) E"

    weight: Positive = 1.0
    """Weight of the forget loss."""

    def pair_loss(self, student: nn.Module, job: Job) -> Callable[[PairBatch], Tensor]:
        """The retain term plus weighted CE on wrong answers for forget."""
        return relabel_loss(student, job, self.weight, self.retain_loss(student, job))


def relabel_loss(
    student: nn.Module, job: Job, weight: float, retain_loss: Callable[[Batch], Tensor]
) -> Callable[[PairBatch], Tensor]:
    """The loss of one step: the retain term plus weighted CE on wrong answers for forget, drawn anew at each call."""
    objective, generator = job.problem.objective, job.generator("labels")

    def step(pair: PairBatch) -> Tensor:
        wrong = objective.relabel(pair.forget, generator)
        kept = retain_loss(pair.retain)
        return kept + weight * objective.loss(student, wrong)

    return step
