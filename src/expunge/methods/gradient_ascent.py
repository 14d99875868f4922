"""Maximise the loss on the forget set until it is no longer known (Thudi et al., 2109.13398; stop rule: 2505.17730).

Maximises only CE(forget). Before each pass it checks whether the share of known forget examples is at most `chances`
times chance. Without a stopping rule the loss grows without bound and the model is destroyed. Published code has other
rules: 2109.13398 adds one gradient, taken at the initial weights; the code of Unlearn-Sparse ascends for a fixed number
of epochs; that of 2505.17730 stops at accuracy 0.2, which is twice chance for ten classes. For a language model "known"
means recited completely, and twice chance over a vocabulary means that almost nothing is recited.

Batch norm uses its running statistics and keeps them. In published code it is in training mode, so forget batches move
them, and the loss that grows is not that of the deployed model, which the rule checks.

Cost: one gradient per forget example and pass; the checks are forward passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.base.part import Count, Positive
from expunge.core.data import Batch
from expunge.core.job import Job
from expunge.core.problem import Problem
from expunge.methods._descent import ForgetDescent
from expunge.train.evaluation import known_share
from expunge.train.loop import batches


@dataclass(frozen=True)
class GradientAscent(ForgetDescent):
    """Gradient ascent on the forget set with a stopping rule."""

    needs: ClassVar[frozenset[str]] = frozenset({"decisions"})
    cite: ClassVar[str] = "thudi2022unrolling"
    paper: ClassVar[str] = "gradient ascent, 2022"
    effort: ClassVar[str] = "at most F E"

    epochs: Count = 100
    """Largest number of passes over the forget set; the stopping rule usually ends the run earlier."""
    learning_rate: Positive = 2e-5
    """Step size, constant; a larger step overshoots the rule between two checks."""
    chances: Positive = 2.0
    """Stop when the share of known forget examples is at most this many times 1 / number of labels."""

    @property
    def ascent(self) -> float | None:
        """1 with SGD, because the loss is ascent only; `None` with Adam, which scales the step of each weight."""
        return 1.0 if self.optimizer == "sgd" else None

    def check(self, problem: Problem) -> None:
        """Refuse a rule that every model meets: with two labels, twice chance is 1."""
        if self.chances >= len(problem.data.labels):
            raise SpecError(
                f"{self.chances:g} times 1 / {len(problem.data.labels)} is met by any model",
                where="method.gradient_ascent.chances",
                allowed=f"below the number of labels, {len(problem.data.labels)}",
                remedy="set chances = 1",
            )

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Ascend pass by pass until the rule or the budget stops it."""
        problem, steps, generator = job.problem, self.steps(student, job.meter), job.generator("batches")
        enough = self.chances / len(problem.data.labels)

        def ascent(batch: Batch) -> Tensor:
            return -problem.objective.loss(student, batch)

        for _ in range(self.epochs):
            if known_share(student, problem, problem.forget) <= enough:
                break
            if steps.run(ascent, batches(problem.data, problem.forget, self.batch_size, 1, generator)).exhausted:
                break
        return student
