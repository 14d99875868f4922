"""Shared by methods that fine-tune: their common settings, and the call of the training loop.

A method with one phase calls `descend`. A method with several phases makes `Steps`, which keep the optimiser's state
between phases, and stops when the result of a phase says that the budget is exhausted.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from expunge.base.part import Count, NonNegative, Positive
from expunge.core.case import Meter
from expunge.core.data import Batch
from expunge.core.job import Job
from expunge.core.method import Method
from expunge.core.modules import trainable
from expunge.core.norms import in_training
from expunge.core.refusals import require_trainable
from expunge.methods._distill import divergence, logits_of, teacher_of
from expunge.numerics.real import as_real
from expunge.train.loop import Fit, Item, PairBatch, batch_count, batches, fit, mean_batch, paired
from expunge.train.optim import OptimizerName, make_optimizer


@dataclass(frozen=True)
class Steps:
    """One optimiser over a student's trainable parameters, for any number of phases."""

    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    meter: Meter
    accumulate: int = 1

    def run(
        self,
        loss_fn: Callable[[Item], Tensor],
        items: Iterable[Item],
        on_step: Callable[[int, float], None] | None = None,
    ) -> Fit:
        """Take one step per item. If the result says that the budget is exhausted, the caller stops."""
        return fit(
            self.parameters,
            loss_fn,
            items,
            self.optimizer,
            meter=self.meter,
            on_step=on_step,
            accumulate=self.accumulate,
        )


@dataclass(frozen=True)
class Descent(Method):
    """Base of the methods that take gradient steps, starting from their input model."""

    version: ClassVar[int] = 2
    adapts: ClassVar[bool] = True

    epochs: Count = 10
    """Passes over the retain set."""
    learning_rate: Positive = 2e-4
    """Step size, constant; a tenth of training's default, the ratio of 2505.22310."""
    batch_size: Count = 128
    """Retain examples per step."""
    optimizer: OptimizerName = "adam"
    """`adam`, `adamw` or `sgd`."""
    weight_decay: NonNegative = 0.0
    """Coefficient of the squared norm."""
    accumulate: Count = 1
    """Number of micro-batches per batch, to save memory; the loss is that of the whole batch. Batches from which a
    method reads hidden layers are not split."""

    def expected_gradients(self, retain: int, forget: int) -> float:
        """One per retain example and epoch."""
        return self.epochs * retain

    def steps(self, student: nn.Module, meter: Meter) -> Steps:
        """Make the steps on the student's trainable parameters, with this method's optimiser."""
        parameters = require_trainable(student)
        optimizer = make_optimizer(self.optimizer, parameters, self.learning_rate, self.weight_decay)
        return Steps(parameters, optimizer, meter, self.accumulate)

    def descend(
        self, student: nn.Module, loss_fn: Callable[[Item], Tensor], items: Iterable[Item], meter: Meter
    ) -> nn.Module:
        """Take one step per item; the student is trained in place and returned."""
        self.steps(student, meter).run(loss_fn, items)
        return student

    def descend_on_retain(
        self, student: nn.Module, job: Job, loss_fn: Callable[[Batch], Tensor] | None = None
    ) -> nn.Module:
        """Minimise a loss over retain batches only; cross-entropy by default."""
        problem = job.problem

        def retain_loss(batch: Batch) -> Tensor:
            return problem.objective.loss(student, batch)

        items = batches(problem.data, problem.retain, self.batch_size, self.epochs, job.generator("batches"))
        return self.descend(student, loss_fn or retain_loss, items, job.meter)

    def descend_in_turn(
        self,
        student: nn.Module,
        job: Job,
        *,
        forget_loss: Callable[[Batch], Tensor],
        retain_loss: Callable[[Batch], Tensor],
        forget_epochs: int,
        forget_batch_size: int,
        on_epoch: Callable[[], None] = lambda: None,
    ) -> nn.Module:
        """In each epoch, one pass over the forget set and then one over the retain set, with the same optimiser.

        Args:
            student: Trained in place and returned.
            job: Gives both sets; its meter counts one gradient per example and pass.
            forget_loss: Minimised over forget batches.
            retain_loss: Minimised over retain batches.
            forget_epochs: The first so many epochs start with a pass over the forget set.
            forget_batch_size: Forget examples per step.
            on_epoch: Called after each epoch, also if the budget ended it early.

        Returns:
            The student.
        """
        problem, steps, generator = job.problem, self.steps(student, job.meter), job.generator("batches")
        for epoch in range(self.epochs):
            exhausted = False
            if epoch < forget_epochs:
                forget = batches(problem.data, problem.forget, forget_batch_size, 1, generator)
                exhausted = steps.run(forget_loss, forget).exhausted
            if not exhausted:
                retain = batches(problem.data, problem.retain, self.batch_size, 1, generator)
                exhausted = steps.run(retain_loss, retain).exhausted
            on_epoch()
            if exhausted:
                break
        return student


def perturb_once(student: nn.Module, job: Job, change: Callable[[Tensor, torch.Generator], None]) -> None:
    """Change every trainable weight in place, tied weights once, with one generator for all.

    A complex parameter is changed as its real and imaginary parts, `[..., 2]`.
    """
    generator = job.generator("noise")
    with torch.no_grad():
        for parameter in trainable(student):
            change(as_real(parameter), generator)


@dataclass(frozen=True)
class PerturbedDescent(Descent):
    """Base of the methods that change every trainable weight once and then repair on the retain set.

    Scales of norms and biases count as weights. A tied weight is changed once, and frozen weights are not changed. The
    two parts of a complex weight are two weights.
    """

    adapts: ClassVar[bool] = False

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Perturb, then descend on retain batches."""
        perturb_once(student, job, self.perturb)
        return self.descend_on_retain(student, job)

    @abstractmethod
    def perturb(self, parameter: Tensor, generator: torch.Generator) -> None:
        """Change one parameter in place; it is real."""


@dataclass(frozen=True)
class ForgetDescent(Descent):
    """Base of the methods that use the forget set only.

    Norms use their running statistics and keep them: see `core.norms`.
    """

    epochs: Count = 10
    """Passes over the forget set."""
    batch_size: Count = 64
    """Forget examples per step."""

    def steps(self, student: nn.Module, meter: Meter) -> Steps:
        """Make the steps, on a student whose norms are in evaluation mode from now on."""
        for norm in in_training(student):
            norm.training = False
        return super().steps(student, meter)

    def expected_gradients(self, retain: int, forget: int) -> float:
        """One per forget example and pass."""
        return self.epochs * forget

    def descend_on_forget(self, student: nn.Module, job: Job, loss_fn: Callable[[Batch], Tensor]) -> nn.Module:
        """Minimise a loss over forget batches; the student is trained in place and returned."""
        problem = job.problem
        items = batches(problem.data, problem.forget, self.batch_size, self.epochs, job.generator("batches"))
        return self.descend(student, loss_fn, items, job.meter)


@dataclass(frozen=True)
class PairedDescent(Descent):
    """Base of the methods whose loss in each step is the sum over a retain batch and a forget batch."""

    forget_batch_size: Count = 64
    """Forget examples per step; the forget set is cycled."""

    def expected_gradients(self, retain: int, forget: int) -> float:
        """One per retain example and epoch, and one per example of the forget batch with each retain batch."""
        steps = batch_count(retain, self.batch_size)
        return self.epochs * (retain + steps * mean_batch(forget, self.forget_batch_size))

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Descend on the pair loss."""
        return self.descend(student, self.pair_loss(student, job), self.pairs(job), job.meter)

    def pairs(self, job: Job) -> Iterator[PairBatch]:
        """The batches of all steps."""
        problem = job.problem
        return paired(
            problem.data,
            problem.retain,
            problem.forget,
            self.batch_size,
            self.forget_batch_size,
            self.epochs,
            job.generator("batches"),
        )

    @property
    def together(self) -> tuple[int, int]:
        """Both batches, each with a graph of its own."""
        return self.batch_size + self.forget_batch_size, 2

    @abstractmethod
    def pair_loss(self, student: nn.Module, job: Job) -> Callable[[PairBatch], Tensor]:
        """Make the loss of one step for this student; if the method has a teacher, it is made here."""


@dataclass(frozen=True)
class RetainingDescent(PairedDescent):
    """Base of the methods whose pair loss has one term that preserves the model's behaviour on the retain set."""

    retain: Literal["ce", "kl"] = "ce"
    """The retain term: `ce`, cross-entropy with the labels, or `kl`, KL(original || model), in nats, the mean over
    decisions. For `kl` the case's original, also after another method, is frozen and in evaluation mode; its forward
    passes do not count as gradients."""

    @property
    def required(self) -> frozenset[str]:
        """With `kl`, decisions are required too."""
        return self.needs | ({"decisions"} if self.retain == "kl" else set())

    @property
    def held_copies(self) -> float:
        """With `kl` at least the frozen original."""
        return max(self.held, 1.0) if self.retain == "kl" else self.held

    def retain_loss(self, student: nn.Module, job: Job, teacher: nn.Module | None = None) -> Callable[[Batch], Tensor]:
        """The retain term as a function of a retain batch.

        Args:
            student: The model to train.
            job: Its problem gives the objective; it holds the original.
            teacher: A frozen copy of the original, if the method has one already; by default `kl` makes one.

        Returns:
            A scalar loss with gradients for the student.
        """
        objective = job.problem.objective
        if self.retain == "ce":
            return lambda batch: objective.loss(student, batch)
        original = teacher_of(job.original) if teacher is None else teacher

        def distance(batch: Batch) -> Tensor:
            return divergence(logits_of(objective, original, batch), objective.decisions(student, batch).logits)

        return distance
