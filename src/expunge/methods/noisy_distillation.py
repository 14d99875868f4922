"""Add noise to every weight, then distil from the model without noise, but not its right answers on the forget set.

theta <- theta + N(0, sigma^2) once, which removes knowledge; distillation then restores the rest. Minimises

    gamma * CE(retain) + alpha * T^2 KL(teacher / T || model / T)(retain) + weight * KL(q || model)(forget)

with q the teacher's prediction given that the answer is not the right one (DELETE, 2503.23751), at a rate that falls
along a cosine. The teacher is the method's input model before the noise: the original, or after another method that
one's model, as in UNDO. Its predictions contain more information per example than labels, so two passes over the retain
set repair as much as ten with labels only. The last term removes what the noise left of the forget set. The retain term
has both CE and KL, each with its weight; the teacher is in evaluation mode.

It combines published parts: weight distortion (2505.22310) moves the model out of reach of relearning, and
distilling into a partly noised copy makes unlearning robust (UNDO, 2506.06278, on language models; it distils from a
model that was unlearned first, at 60 to 80 % of retraining's cost). Its settings were chosen on Fashion-MNIST
with a small convolutional net, by attacks on seeds that no study reports; sigma suits the size of that net's weights.

Cost: one gradient per retain example and epoch, and one per example of the forget batch with each retain batch. The
forget set is cycled in batches of `forget_batch_size`; the last batch of a pass holds the rest. The teacher is
a forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from expunge.base.part import Count, NonNegative, Positive, Share
from expunge.core.decisions import loss
from expunge.core.job import Job
from expunge.core.objective import Objective
from expunge.methods._descent import PairedDescent, perturb_once
from expunge.methods._distill import divergence, logits_of, teacher_of
from expunge.methods._noise import add_noise
from expunge.methods.delete import without_answer
from expunge.train.loop import PairBatch, batch_count, fit
from expunge.train.optim import cosine


@dataclass(frozen=True)
class NoisyDistillation(PairedDescent):
    """Distortion, then distillation of all but the answers that must go."""

    held: ClassVar[float] = 1
    adapts: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"decisions"})
    cite: ClassVar[str] = "lee2025undo"
    paper: ClassVar[str] = "ours, after UNDO, 2025"
    effort: ClassVar[str] = "(R + B) E"
    stronger: ClassVar[tuple[str, float]] = ("sigma", 1.5)

    sigma: Positive = 0.08
    """Standard deviation of the noise, in units of the weights."""
    epochs: Count = 2
    """Passes over the retain set."""
    learning_rate: Positive = 3e-3
    """Step size at the start."""
    final: Share = 0.05
    """Last step size divided by the first one."""
    batch_size: Count = 32
    """Retain examples per step; small, because the repair depends on the number of steps."""
    forget_batch_size: Count = 4
    """Forget examples per step; the forget set is cycled."""
    gamma: NonNegative = 0.5
    """Weight of the cross-entropy on retain."""
    alpha: NonNegative = 1.0
    """Weight of the divergence on retain."""
    temperature: Positive = 2.0
    """T: logits are divided by T before they are compared."""
    weight: NonNegative = 0.2
    """Weight of the divergence on forget."""

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Distort, then distil."""
        pair_loss = self.pair_loss(student, job)
        perturb_once(student, job, lambda parameter, generator: add_noise(parameter, self.sigma, generator))
        steps = self.steps(student, job.meter)
        schedule = cosine(self.epochs * batch_count(len(job.problem.retain), self.batch_size), self.final)
        items, count = self.pairs(job), self.accumulate
        fit(steps.parameters, pair_loss, items, steps.optimizer, meter=job.meter, schedule=schedule, accumulate=count)
        return student

    def pair_loss(self, student: nn.Module, job: Job) -> Callable[[PairBatch], Tensor]:
        """The sum of the three terms; the teacher is a copy of the student's present state."""
        objective, teacher = job.problem.objective, teacher_of(student)

        def step(pair: PairBatch) -> Tensor:
            forget_term = _forget(objective, student, teacher, pair)
            return self._keep(objective, student, teacher, pair) + self.weight * forget_term

        return step

    def _keep(self, objective: Objective, student: nn.Module, teacher: nn.Module, pair: PairBatch) -> Tensor:
        decisions = objective.decisions(student, pair.retain)
        kl = divergence(logits_of(objective, teacher, pair.retain), decisions.logits, self.temperature)
        return self.gamma * loss(decisions) + self.alpha * kl


def _forget(objective: Objective, student: nn.Module, teacher: nn.Module, pair: PairBatch) -> Tensor:
    decisions = objective.decisions(student, pair.forget)
    reference = without_answer(logits_of(objective, teacher, pair.forget), decisions.targets)
    return divergence(reference, decisions.logits)
