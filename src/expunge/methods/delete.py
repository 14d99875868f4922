"""Keep the original's predictions on the forget set, except for the right answer (DELETE, Zhou et al., 2503.23751).

Minimises KL(q || model(x)) over the forget set, q being the original's prediction with the right answer's probability
set to zero and the others scaled to sum to one. The ratios among wrong answers are preserved and replace a retain set.
The original is the case's, also after another method: what the trained model knew besides the answer is what is kept.
The published code does the same with a logit of -1e10 and, correctly, a sum over classes. Batch norm uses its running
statistics and keeps them, as with the code's option to freeze it; without the option, the code lets forget batches move
them. For a language model q is computed for each token that is a decision.

Cost: one gradient per forget example and pass. The teacher is a forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from expunge.base.part import Count
from expunge.core.data import Batch
from expunge.core.job import Job
from expunge.methods._descent import ForgetDescent
from expunge.methods._distill import divergence, logits_of, teacher_of


@dataclass(frozen=True)
class DELETE(ForgetDescent):
    """Decoupled distillation: everything except the right answer."""

    held: ClassVar[float] = 1
    needs: ClassVar[frozenset[str]] = frozenset({"decisions"})
    cite: ClassVar[str] = "zhou2025delete"
    paper: ClassVar[str] = "DELETE, 2025"
    effort: ClassVar[str] = "F E"

    epochs: Count = 30
    """Passes over the forget set."""

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Distil from the original without the right answers."""
        objective, teacher = job.problem.objective, teacher_of(job.original)

        def step(batch: Batch) -> Tensor:
            decisions = objective.decisions(student, batch)
            reference = without_answer(logits_of(objective, teacher, batch), decisions.targets)
            return divergence(reference, decisions.logits)

        return self.descend_on_forget(student, job, step)


def without_answer(logits: Tensor, targets: Tensor) -> Tensor:
    """Logits `[n, c]` of the same prediction given that the answer is not the target `[n]`."""
    # Far below every other logit but finite: the divergence multiplies it by a probability of exactly 0.
    low = torch.finfo(logits.dtype).min / 2
    return logits.scatter(1, targets[:, None], low)
