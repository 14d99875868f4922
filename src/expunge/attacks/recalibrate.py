"""Re-estimate the running statistics of batch norm on retained data: a control for relearning.

Fine-tuning on retained data also updates the means and variances that batch norm uses in evaluation mode, and that
alone may restore accuracy. This control does only that: no weight changes, dropout stays off, and every statistic is
the plain average over the batches of one pass. Knowledge that comes back here was never removed from the weights.
Norms in frozen parts keep their statistics, because fine-tuning does not update them either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from expunge.attacks._unexposed import allowed, edited
from expunge.base.errors import MissingError
from expunge.base.part import Count
from expunge.core.case import Attacked, Case
from expunge.core.contracts import Attack
from expunge.core.generators import generator_of
from expunge.core.norms import moving_norms
from expunge.core.problem import Problem
from expunge.train.loop import batches


@dataclass(frozen=True)
class Recalibrate(Attack):
    """New running statistics, old weights; only for models with batch norm."""

    version: ClassVar[int] = 2

    batch_size: Count = 128
    """Retained examples per batch; each batch has the same weight."""

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model without batch norm that fine-tuning would update.

        Raises:
            MissingError: The model has no batch norm that keeps running statistics, or all of it is frozen.
        """
        if not _norms(model):
            raise MissingError(
                "the model has no batch norm with running statistics that may change: there is nothing to recalibrate",
                where=f"attack.recalibrate ({type(model).__name__})",
                remedy="leave this attack out; it is a control for models with batch norm",
            )

    def check(self, problem: Problem) -> None:
        """Check that there are examples to average over.

        Raises:
            SpecError: All of them share a group with a scored forget example.
        """
        allowed(problem, problem.retain)

    def __call__(self, model: nn.Module, case: Case, seed: int) -> Attacked:
        """A copy with new statistics.

        Raises:
            MissingError: The model has no batch norm that keeps running statistics.
        """
        self.check_model(model)
        return edited(model, case, lambda student: self._recalibrate(student, case.problem, seed))

    def _recalibrate(self, student: nn.Module, problem: Problem, seed: int) -> None:
        norms = _norms(student)
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            # None makes PyTorch average over all batches so far.
            norm.momentum = None
            norm.train()
        # Random order, because the variance of a batch of one class is too small.
        generator = generator_of(seed, "batches")
        with torch.no_grad():
            for batch in batches(problem.data, allowed(problem, problem.retain), self.batch_size, 1, generator):
                problem.objective.losses(student, batch)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [m for m in moving_norms(model) if isinstance(m, _BatchNorm)]
