"""Shrink the weights that matter to the forget set far more than to all the data (SSD, Foster et al., 2308.07707).

theta <- theta * min(lambda * I_D / I_F, 1) wherever I_F > alpha * I_D, and nothing else: no training. I is the mean
over examples of the squared gradient of an example's log-likelihood (for a text the sum over its decisions), the
diagonal of the empirical Fisher information, over the forget set (F) and over forget and retain set together (D).

This is the paper's importance, per example. The published code squares the gradient of a *batch's mean* loss, so that
its importance falls with the batch size, by another factor for the few batches of F than for the many of D; alpha and
lambda of the two do not carry over. In both, the forget set is part of D, so that I_F is at most |D| / |F| times I_D:
with a forget set of a tenth of the data or more, alpha = 10 selects nothing. The code of 2505.22310 also sums instead
of averaging, and dampens every weight.

Cost: one gradient per forget example and one per retain example, one at a time: slower than a batch by about five on a
CPU. A budget that is too small takes a random part of the retain set; one without room for any leaves the model as is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from expunge.base.part import Positive
from expunge.base.seeds import derive
from expunge.core.case import Meter, Recipe
from expunge.core.contracts import Method
from expunge.core.modules import trainable
from expunge.core.problem import Problem
from expunge.methods._gradients import mean_squared_gradient


@dataclass(frozen=True)
class SSD(Method):
    """Selective synaptic dampening."""

    cite: ClassVar[str] = (
        "@inproceedings{foster2024ssd, title={Fast Machine Unlearning Without Retraining Through Selective Synaptic "
        "Dampening}, author={Foster, Jack and Schoepf, Stefan and Brintrup, Alexandra}, booktitle={AAAI}, year={2024}, "
        "note={arXiv:2308.07707}}"
    )
    paper: ClassVar[str] = "SSD, 2024"

    alpha: Positive = 10.0
    """A weight is dampened where its importance to the forget set is over this many times that to all data; none is at
    |D| / |F| or above."""
    dampening: Positive = 1.0
    """The paper's lambda: smaller dampens harder."""

    def apply(self, student: nn.Module, problem: Problem, recipe: Recipe | None, seed: int, meter: Meter) -> nn.Module:
        """Measure both importances, dampen once."""
        generator = torch.Generator().manual_seed(derive(seed, "retain"))
        # In random order, so that what a budget cuts off is a random part.
        retain = problem.retain[torch.randperm(len(problem.retain), generator=generator)]
        forget_importance = mean_squared_gradient(student, problem, problem.forget, meter)
        retain_importance = mean_squared_gradient(student, problem, retain, meter)
        if forget_importance is None or retain_importance is None:
            return student
        share = len(problem.forget) / (len(problem.forget) + len(problem.retain))
        with torch.no_grad():
            for parameter, forget, kept in zip(trainable(student), forget_importance, retain_importance, strict=True):
                parameter.mul_(factors(forget, share * forget + (1 - share) * kept, self.alpha, self.dampening))
        return student


def factors(forget: Tensor, whole: Tensor, alpha: float, dampening: float) -> Tensor:
    """What each weight is multiplied with: min(dampening * whole / forget, 1) where forget > alpha * whole, else 1.

    Args:
        forget: Importance to the forget set.
        whole: Importance to all data, in the same shape.
        alpha: Threshold of selection.
        dampening: Strength of what follows.

    Returns:
        Numbers in [0, 1], in the same shape.
    """
    # Where `forget` is 0 nothing is selected, and the quotient is not used.
    factor = (dampening * whole / forget).clamp(max=1)
    return torch.where(forget > alpha * whole, factor, torch.ones_like(forget))
