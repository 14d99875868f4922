"""Fine-tune on the retain set while moving away from the original weights (2505.22310, Weight Dist Reg).

Minimises CE(retain) - alpha * d with d = sqrt(mean((theta - theta0)^2) + 1e-8), in units of the weights. The mean is
over the entries of all trainable parameters together, a tied one counted once; whether the published code averages
over tensors first could not be seen, and would weigh a bias like a matrix. d has no upper bound: rate and number of
steps limit how far it goes.

At theta0 the gradient of d is zero (without the 1e-8 it would be undefined), so cross-entropy has to make the first
move, and d then goes on in whatever direction that was. The norm of its gradient is at most one over the root of the
number of weights: SGD needs a large alpha, while Adam divides the scale out as soon as the gradient of a converged
net's cross-entropy is smaller still.

Cost: one gradient per retain example and epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from expunge.base.part import NonNegative
from expunge.core.case import Meter, Recipe
from expunge.core.data import Batch
from expunge.core.modules import trainable
from expunge.core.objective import loss
from expunge.core.problem import Problem
from expunge.methods._descent import Descent
from expunge.methods.finetune import CITE
from expunge.numerics.precision import wide

EPSILON = 1e-8
"""Under the root; in squared units of the weights."""


@dataclass(frozen=True)
class WeightDistanceReg(Descent):
    """Fine-tuning that is rewarded for its distance from the original weights."""

    cite: ClassVar[str] = CITE
    paper: ClassVar[str] = "weight distance regularisation, 2025"
    effort: ClassVar[str] = "R E"

    alpha: NonNegative = 10.0
    """Weight of the distance, in nats per unit of the weights; the paper's 1 belongs to a ResNet-18."""

    def apply(self, student: nn.Module, problem: Problem, recipe: Recipe | None, seed: int, meter: Meter) -> nn.Module:
        """Descend on retain batches, away from where it starts."""
        parameters = trainable(student)
        start = [parameter.detach().clone() for parameter in parameters]

        def step(batch: Batch) -> Tensor:
            return loss(problem.objective.decisions(student, batch)) - self.alpha * distance(parameters, start)

        return self.descend_on_retain(student, problem, seed, meter, step)


def distance(parameters: Sequence[Tensor], start: Sequence[Tensor]) -> Tensor:
    """Root of the mean squared difference over all entries together, plus `EPSILON` under the root; a scalar."""
    squares = [wide(parameter - origin).square().sum() for parameter, origin in zip(parameters, start, strict=True)]
    return (torch.stack(squares).sum() / sum(origin.numel() for origin in start) + EPSILON).sqrt()
