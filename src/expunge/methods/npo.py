"""Negative preference optimisation: push the forget set's likelihood below the original's (Zhang et al., 2404.05868).

The reference model, p_ref, is the case's original, also after another method: in the paper it is the model before any
unlearning, and the gradient vanishes on examples that have fallen far below it.

Minimises -(2/beta) E log sigma(-beta log(p / p_ref)) on the forget set plus alpha * CE on the retain set (`retain`: or
KL(original || model) there; the paper has NPO with either term and with none, which is alpha = 0). p is the
likelihood of a whole example: the *sum* of its decisions' log-probabilities, not their mean over tokens. The original
is in evaluation mode.

Cost: one gradient per retain example and epoch, and one per example of the forget batch with each retain batch. The
forget set is cycled in batches of `forget_batch_size`; the last batch of a pass holds the rest. The teacher is
a forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.base.part import NonNegative, Positive
from expunge.core.data import Batch
from expunge.core.decisions import decision_losses, per_example
from expunge.core.job import Job
from expunge.core.objective import Objective
from expunge.methods._descent import RetainingDescent
from expunge.methods._distill import teacher_of
from expunge.train.loop import PairBatch


@dataclass(frozen=True)
class NPO(RetainingDescent):
    """Negative preference optimisation with a retain term."""

    held: ClassVar[float] = 1
    needs: ClassVar[frozenset[str]] = frozenset({"decisions"})
    cite: ClassVar[str] = "zhang2024npo"
    paper: ClassVar[str] = "NPO, 2024"
    effort: ClassVar[str] = "(R + B) E"

    beta: Positive = 0.1
    """Inverse temperature; towards 0 the loss becomes gradient ascent."""
    alpha: NonNegative = 1.0
    """Weight of the retain loss."""

    def pair_loss(self, student: nn.Module, job: Job) -> Callable[[PairBatch], Tensor]:
        """NPO on forget plus the weighted retain term."""
        objective, teacher = job.problem.objective, teacher_of(job.original)
        retain_loss = self.retain_loss(student, job, teacher)

        def step(pair: PairBatch) -> Tensor:
            forget = npo_loss(objective, student, teacher, pair.forget, self.beta)
            return forget + self.alpha * retain_loss(pair.retain)

        return step


def npo_loss(objective: Objective, student: nn.Module, teacher: nn.Module, batch: Batch, beta: float) -> Tensor:
    """-(2/beta) times the mean over examples of log sigma(-beta log(p / p_ref)).

    Args:
        objective: Gives decisions.
        student: The model that is trained.
        teacher: The frozen reference.
        batch: Forget examples.
        beta: Inverse temperature.

    Returns:
        A scalar.
    """
    log_p = -_nll(objective, student, batch)
    with torch.no_grad():
        log_ref = -_nll(objective, teacher, batch)
    return -(2 / beta) * F.logsigmoid(-beta * (log_p - log_ref)).mean()


def _nll(objective: Objective, model: nn.Module, batch: Batch) -> Tensor:
    decisions = objective.decisions(model, batch)
    return per_example(decision_losses(decisions), decisions.example, batch.size)
