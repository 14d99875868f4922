"""Train on the forget set once more, and take the opposite step in weight space (Ilharco et al., 2212.04089).

theta <- theta_0 - strength * (theta_ft - theta_0), theta_ft being theta_0 fine-tuned on the forget set only. theta_0 is
the method's input model, as in published code: the model that is edited, after another method that one's. A model that
memorised the forget set has almost no gradient there, so the vector is small or mostly noise: tune `strength` first.
The paper tunes it on validation data, up to 1. Its code changes every floating-point entry of the state, also running
statistics of batch norm. Here batch norm uses the input model's running statistics while the copy is fine-tuned, and
buffers keep the input model's values.

Cost: one gradient per forget example and pass.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from expunge.base.part import NonNegative
from expunge.core.data import Batch
from expunge.core.job import Job
from expunge.core.modules import trainable
from expunge.methods._descent import ForgetDescent


@dataclass(frozen=True)
class TaskNegation(ForgetDescent):
    """Subtraction of the forget set's task vector."""

    held: ClassVar[float] = 1
    adapts: ClassVar[bool] = False
    cite: ClassVar[str] = "ilharco2023task"
    paper: ClassVar[str] = "task arithmetic, 2023"
    effort: ClassVar[str] = "F E"
    stronger: ClassVar[tuple[str, float]] = ("strength", 1.5)

    strength: NonNegative = 4.0
    """The paper's lambda: how many times the task vector is subtracted."""

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Fine-tune a copy on the forget set, then negate."""
        objective, tuned = job.problem.objective, copy.deepcopy(student)

        def forget_loss(batch: Batch) -> Tensor:
            return objective.loss(tuned, batch)

        self.descend_on_forget(tuned, job, forget_loss)
        with torch.no_grad():
            for parameter, target in zip(trainable(student), trainable(tuned), strict=True):
                parameter.sub_(self.strength * (target - parameter))
        return student
