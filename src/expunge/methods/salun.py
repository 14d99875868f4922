"""Random relabelling that changes only weights with a large forget gradient (SalUn, Fan et al., 2310.12508).

Minimises CE(retain) + weight * CE(forget, y'), with y' uniform over the wrong answers and drawn anew at every step.
Only the `share` of trainable weights with the largest |gradient of the forget set's summed CE| at the method's input
model may change; after another method this is that one's model, whose changes stay. CE on retain is the paper's term
and the default; `retain` = `kl` replaces it by KL(original || model).

All other weights are reset to their values in the input model after each step. Zero gradients would not be enough:
every optimiser here decays a weight whose gradient is zero, and momentum moves a weight that had a gradient before.
Running statistics of batch norm are not weights and do change, by retain batches.

Published code differs. Until early 2026 it masked gradients only, so masked weights drifted by decay and momentum. It
alternates whole epochs of forget batches and of retain batches; the paper adds the two losses, as here. Its random
labels can be the right one. Its mask script adds up the gradients of each batch's *mean* loss, so an example of a
smaller last batch counts more; here each example counts the same. Both compute this gradient in evaluation mode. The
SalUn in the repository of REM is another method: cross-entropy on retain with a penalty on the gradient with respect to
the input.

Cost: one gradient per forget example for the mask; then, as for random relabelling, one per retain example and epoch,
and one per example of the forget batch with each retain batch. The forget set is cycled in batches of
`forget_batch_size`; the last batch of a pass holds the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from expunge.base.part import Positive, Share
from expunge.core.job import Job
from expunge.methods._descent import RetainingDescent
from expunge.methods._gradients import summed_gradient
from expunge.methods.random_relabel import relabel_loss
from expunge.numerics.real import as_real
from expunge.train.loop import PairBatch


@dataclass(frozen=True)
class SalUn(RetainingDescent):
    """Random relabelling under a saliency mask."""

    held: ClassVar[float] = 2.5
    adapts: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"decisions"})
    cite: ClassVar[str] = "fan2024salun"
    paper: ClassVar[str] = "SalUn, 2024"
    effort: ClassVar[str] = "F + (R + B) E"

    weight: Positive = 1.0
    """Weight of the forget loss."""
    share: Share = 0.5
    """Share of the trainable weights that may change."""

    def expected_gradients(self, retain: int, forget: int) -> float:
        """One per forget example for the mask, and the cost of the pairs."""
        return forget + super().expected_gradients(retain, forget)

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Compute the mask, then descend with it."""
        problem, steps = job.problem, self.steps(student, job.meter)
        gradient = summed_gradient(student, problem, problem.forget, job.meter, self.batch_size)
        if gradient is None:
            return student
        movable = largest([entry.abs() for entry in gradient], self.share)
        values = [as_real(parameter.detach()) for parameter in steps.parameters]
        start = [entry.clone() for entry in values]

        def restore(step: int, value: float) -> None:
            for entry, moves, before in zip(values, movable, start, strict=True):
                entry.copy_(torch.where(moves, entry, before))

        steps.run(self.pair_loss(student, job), self.pairs(job), restore)
        return student

    def pair_loss(self, student: nn.Module, job: Job) -> Callable[[PairBatch], Tensor]:
        """The loss of random relabelling."""
        return relabel_loss(student, job, self.weight, self.retain_loss(student, job))


def largest(values: list[Tensor], share: float) -> list[Tensor]:
    """Masks of the largest numbers over all tensors together: exactly the given share; the earlier ones among equals.

    Args:
        values: Tensors of any shapes.
        share: Share of all entries to mark.

    Returns:
        A bool tensor for each.
    """
    flat = torch.cat([entry.flatten() for entry in values])
    mask = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    mask[flat.argsort(descending=True, stable=True)[: round(share * len(flat))]] = True
    parts = mask.split([entry.numel() for entry in values])
    return [part.view_as(entry) for part, entry in zip(parts, values, strict=True)]
