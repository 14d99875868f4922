"""Fine-tune on the retain set while moving away from the original weights (2505.22310, Weight Dist Reg).

Minimises CE(retain) - alpha * d with d = sqrt(mean((theta - theta0)^2) + 1e-8), in units of the weights. theta0 is the
case's original, also if the method starts from another method's model: the code of 2505.22310 starts it from
safeguarded models and measures from the trained one. The mean is over the entries of all trainable parameters together,
a tied one counted once, as in that code, which joins all parameters into one vector. d has no upper bound: step size
and number of steps limit how far the model moves.

At theta0 the gradient of d is zero (without the 1e-8 it would be undefined). So cross-entropy makes the first move,
and d then pushes further in the same direction. The norm of d's gradient is at most one over the root of the number of
weights. SGD therefore needs a large alpha. Adam divides the scale out, once the gradient of a converged net's
cross-entropy is even smaller.

Cost: one gradient per retain example and epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from expunge.base.part import NonNegative
from expunge.core.data import Batch
from expunge.core.job import Job
from expunge.core.modules import counterparts
from expunge.methods._descent import Descent
from expunge.numerics.precision import wide
from expunge.numerics.real import as_real, real_size

EPSILON = 1e-8
"""Added under the root, in squared units of the weights."""


@dataclass(frozen=True)
class WeightDistanceReg(Descent):
    """Fine-tuning with a reward for the distance from the original weights."""

    held: ClassVar[float] = 1
    adapts: ClassVar[bool] = False
    cite: ClassVar[str] = "siddiqui2025dormant"
    paper: ClassVar[str] = "weight distance regularisation, 2025"
    effort: ClassVar[str] = "R E"

    alpha: NonNegative = 10.0
    """Weight of the distance, in nats per unit of the weights; the paper's 1 is for a ResNet-18."""

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Descend on retain batches, away from the original weights."""
        origin = counterparts(job.original, student)
        parameters = {name: p for name, p in student.named_parameters() if p.requires_grad}
        start = [origin[name] for name in parameters]

        def step(batch: Batch) -> Tensor:
            return job.problem.objective.loss(student, batch) - self.alpha * distance([*parameters.values()], start)

        return self.descend_on_retain(student, job, step)


def distance(parameters: Sequence[Tensor], start: Sequence[Tensor]) -> Tensor:
    """Root of the mean squared difference over all entries together, plus `EPSILON` under the root; a scalar.

    A complex entry counts as two.
    """
    differences = (parameter - origin for parameter, origin in zip(parameters, start, strict=True))
    squares = [as_real(wide(difference)).square().sum() for difference in differences]
    return (torch.stack(squares).sum() / sum(map(real_size, start)) + EPSILON).sqrt()
