"""Move away from a teacher on the forget set and towards it on the retain set (SCRUB, Kurmanji et al., 2302.09880).

The teacher is the case's original, also after another method: in the paper it is the trained model, which knows all
examples. (To move away from a model that has forgotten would teach again.)

With D(x) = T^2 KL(original(x) / T || model(x) / T): each of the first `forget_epochs` epochs starts with a pass that
maximises D(forget); every epoch has a pass that minimises alpha * D(retain) + gamma * CE(retain). Both use one
optimiser. KL is the sum over classes, as in the paper; the code of 2505.22310 also takes the mean over classes, which
divides it by their number and changes the meaning of alpha. Its alternating SCRUB maximises in every epoch
(`forget_epochs` equal to `epochs`), with alpha = gamma = T = 1 and a teacher in training mode, so that batch norm uses
the batch's statistics.

SCRUB's own notebooks have the teacher in evaluation mode, and ascent in the first `msteps` epochs, as here. Their step
size falls in steps; here it is constant. Their forget batches also move the running statistics of batch norm; here only
retain batches do. The SCRUB in the repository of REM ascends cross-entropy on the forget set as well, which the paper
does not.

With `rewind` (SCRUB+R) the model is saved after each epoch. At the end, the epoch is chosen whose forget error is
closest to a reference: the *final* model's error on unseen examples with the distribution of the forget set. These are
the problem's hold-out set; without one, its test examples, weighted so that their labels have the forget set's
frequencies (nothing else of the test set is used). The rule assumes that a retrained model has the same error on the
forget set as on unseen examples. This is true for random examples and for whole classes. For examples chosen to be
hard, the retrained model's error is larger, and rewinding stops too early. It is off by default.

Cost: one gradient per retain example and epoch, and one per forget example in each of the first `forget_epochs`.
Teachers and rewinding are forward passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from expunge.base.part import Count, NonNegative, Positive
from expunge.core.data import Batch
from expunge.core.decisions import Decisions, loss
from expunge.core.job import Job
from expunge.core.modules import restore_state, saved_state
from expunge.core.problem import Problem
from expunge.methods._descent import Descent
from expunge.methods._distill import divergence, logits_of, teacher_of
from expunge.train.evaluation import known, known_share


@dataclass(frozen=True)
class SCRUB(Descent):
    """Alternating distillation away from and towards the original, optionally with rewinding."""

    needs: ClassVar[frozenset[str]] = frozenset({"decisions"})
    cite: ClassVar[str] = "kurmanji2023scrub"
    paper: ClassVar[str] = "SCRUB, 2023"
    effort: ClassVar[str] = "R E + F forget_epochs"

    learning_rate: Positive = 5e-4
    """Step size, constant."""
    forget_epochs: Count = 7
    """Number of epochs, from the first, that start with a pass over the forget set."""
    forget_batch_size: Count = 64
    """Forget examples per step."""
    alpha: NonNegative = 0.5
    """Weight of the divergence on retain."""
    gamma: NonNegative = 1.0
    """Weight of the cross-entropy on retain."""
    temperature: Positive = 2.0
    """T: logits are divided by T before they are compared."""
    rewind: bool = False
    """Whether to return to the epoch whose forget error is closest to the reference error."""

    def expected_gradients(self, retain: int, forget: int) -> float:
        """One per retain example and epoch, and one per forget example in the first of them."""
        return self.epochs * retain + min(self.forget_epochs, self.epochs) * forget

    @property
    def held_copies(self) -> float:
        """The teacher, and with `rewind` the weights of each epoch."""
        return 1 + (self.epochs if self.rewind else 0)

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Alternate; then rewind if `rewind` is set."""
        problem, teacher, saved = job.problem, teacher_of(job.original), list[dict[str, Tensor]]()

        def move_away(batch: Batch) -> Tensor:
            return -self._divergence(problem.objective.decisions(student, batch), teacher, problem, batch)

        def move_towards(batch: Batch) -> Tensor:
            decisions = problem.objective.decisions(student, batch)
            kept = self._divergence(decisions, teacher, problem, batch)
            return self.alpha * kept + self.gamma * loss(decisions)

        def save() -> None:
            saved.append(saved_state(student))

        self.descend_in_turn(
            student,
            job,
            forget_loss=move_away,
            retain_loss=move_towards,
            forget_epochs=self.forget_epochs,
            forget_batch_size=self.forget_batch_size,
            on_epoch=save if self.rewind else lambda: None,
        )
        if self.rewind:
            rewind(student, saved, problem)
        return student

    def _divergence(self, decisions: Decisions, teacher: nn.Module, problem: Problem, batch: Batch) -> Tensor:
        return divergence(logits_of(problem.objective, teacher, batch), decisions.logits, self.temperature)


def rewind(student: nn.Module, saved: list[dict[str, Tensor]], problem: Problem) -> None:
    """Load the saved state whose forget error is closest to the reference; the latest among equals.

    Args:
        student: The final model; its error on unseen examples is the reference. It is changed in place.
        saved: States in the order of the epochs.
        problem: Gives the forget set and the unseen examples.
    """
    reference = reference_error(student, problem)
    best, smallest = saved[-1], float("inf")
    for state in reversed(saved):
        restore_state(student, state)
        gap = abs(1 - known_share(student, problem, problem.forget) - reference)
        if gap < smallest:
            best, smallest = state, gap
    restore_state(student, best)


def reference_error(model: nn.Module, problem: Problem) -> float:
    """The model's error on unseen examples with the distribution of the forget set."""
    if len(problem.holdout):
        return 1 - known_share(model, problem, problem.holdout)
    right = known(model, problem, problem.test).double()
    if problem.data.has_tokens:
        return 1 - float(right.mean())
    targets, count = problem.data.targets, len(problem.data.labels)
    forgotten = torch.bincount(targets[problem.forget], minlength=count).double()
    unseen = torch.bincount(targets[problem.test], minlength=count)
    # A label without test examples has no test error; the error on the other labels replaces it.
    weight = (forgotten / unseen.clamp(min=1))[targets[problem.test]]
    return 1 - float((weight * right).sum() / weight.sum()) if weight.sum() else 1 - float(right.mean())
