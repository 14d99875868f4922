"""Fine-tune on the retain set with a decreasing L1 penalty on all weights (Jia et al., 2304.04934).

Minimises CE(retain) + gamma_t * ||theta||_1 with gamma_t = gamma * (1 - epoch / epochs): the full penalty in the first
epoch, almost none in the last. The norm is the sum over trainable weights, with tied weights counted once; its
subgradient at zero is zero. The published code does the same over all parameters, and can add epochs without a penalty;
the code of 2505.22310 has a constant penalty on the *mean* of |theta|. Under Adam the effect of the penalty is relative
to the loss's gradient, which on a converged net is small. The paper uses SGD, which is the default here.

Cost: one gradient per retain example and epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from expunge.base.part import NonNegative, Positive
from expunge.core.data import Batch
from expunge.core.job import Job
from expunge.core.modules import trainable
from expunge.core.problem import Problem
from expunge.methods._descent import Descent
from expunge.numerics.precision import wide
from expunge.train.loop import batches
from expunge.train.optim import OptimizerName


@dataclass(frozen=True)
class L1Sparse(Descent):
    """Fine-tuning with a decreasing L1 penalty."""

    adapts: ClassVar[bool] = False
    cite: ClassVar[str] = "jia2023sparse"
    paper: ClassVar[str] = "l1-sparse, 2023"
    effort: ClassVar[str] = "R E"
    stronger: ClassVar[tuple[str, float]] = ("gamma", 2.0)

    learning_rate: Positive = 0.01
    """Step size, constant."""
    optimizer: OptimizerName = "sgd"
    """`adam`, `adamw` or `sgd`."""
    gamma: NonNegative = 5e-3
    """Weight of the L1 norm in the first epoch; the paper's 5e-4, for a ResNet-18, has little effect on a small net."""

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Descend epoch by epoch with a decreasing penalty."""
        problem, steps, generator = job.problem, self.steps(student, job.meter), job.generator("batches")
        for epoch in range(self.epochs):
            items = batches(problem.data, problem.retain, self.batch_size, 1, generator)
            if steps.run(self.penalised(student, problem, self.weight(epoch)), items).exhausted:
                break
        return student

    def weight(self, epoch: int) -> float:
        """gamma_t of an epoch; epochs are counted from 0."""
        return self.gamma * (1 - epoch / self.epochs)

    def penalised(self, student: nn.Module, problem: Problem, weight: float) -> Callable[[Batch], Tensor]:
        """Cross-entropy plus the weighted norm."""

        def step(batch: Batch) -> Tensor:
            return problem.objective.loss(student, batch) + weight * l1_norm(student)

        return step


def l1_norm(model: nn.Module) -> Tensor:
    """Sum of the absolute values of all trainable weights; that of a complex weight is its modulus."""
    return torch.stack([wide(parameter).abs().sum() for parameter in trainable(model)]).sum()
