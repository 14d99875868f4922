"""Climb the loss of the forget set until it is no longer known (Thudi et al., 2109.13398; 2505.17730's stopping rule).

Maximises CE(forget), nothing else, and looks after each pass whether the share of forget examples that are known is
down to `chances` times chance. Without that rule the loss has no end and the model is destroyed. Published code differs
in it: 2109.13398 adds one gradient, taken at the initial weights; the code of Unlearn-Sparse climbs for a fixed number
of epochs; that of 2505.17730 stops at accuracy 0.2, which is twice chance for ten classes. For a language model "known"
means recited whole, and twice chance over a vocabulary means that hardly anything is.

Cost: one gradient per forget example and pass; the looks are forward passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.base.part import Count, Positive
from expunge.base.seeds import derive
from expunge.core.case import Meter, Recipe
from expunge.core.data import Batch
from expunge.core.objective import loss
from expunge.core.problem import Problem
from expunge.methods._descent import ForgetDescent
from expunge.train.evaluation import known_share
from expunge.train.loop import batches


@dataclass(frozen=True)
class GradientAscent(ForgetDescent):
    """Gradient ascent on the forget set with a stopping rule."""

    cite: ClassVar[str] = (
        "@inproceedings{thudi2022unrolling, title={Unrolling SGD: Understanding Factors Influencing Machine "
        "Unlearning}, author={Thudi, Anvith and Deza, Gabriel and Chandrasekaran, Varun and Papernot, Nicolas}, "
        "booktitle={EuroS\\&P}, year={2022}, note={arXiv:2109.13398}}"
    )
    paper: ClassVar[str] = "gradient ascent, 2022"
    effort: ClassVar[str] = "at most F E"

    epochs: Count = 100
    """Most passes over the forget set; the stopping rule usually needs fewer."""
    learning_rate: Positive = 2e-5
    """Step size, constant; a faster climb overshoots the rule between two looks."""
    chances: Positive = 2.0
    """Stop once the share of forget examples that are known is at most this many times 1 / number of labels."""

    @property
    def ascent(self) -> float | None:
        """All of it, with SGD; Adam scales steps weight by weight."""
        return 1.0 if self.optimizer == "sgd" else None

    def check(self, problem: Problem) -> None:
        """Refuse a rule that is met before the first step: with two labels twice the chance is everything."""
        if self.chances >= len(problem.data.labels):
            raise SpecError(
                f"{self.chances:g} times 1 / {len(problem.data.labels)} is met by any model",
                where="method.gradient_ascent.chances",
                allowed=f"below the number of labels, {len(problem.data.labels)}",
                remedy="set chances = 1",
            )

    def apply(self, student: nn.Module, problem: Problem, recipe: Recipe | None, seed: int, meter: Meter) -> nn.Module:
        """Ascend pass by pass until the rule or the budget says stop."""
        steps, generator = self.steps(student, meter), torch.Generator().manual_seed(derive(seed, "batches"))
        enough = self.chances / len(problem.data.labels)

        def ascent(batch: Batch) -> Tensor:
            return -loss(problem.objective.decisions(student, batch))

        for _ in range(self.epochs):
            if known_share(student, problem, problem.forget) <= enough:
                break
            if steps.run(ascent, batches(problem.data, problem.forget, self.batch_size, 1, generator)).exhausted:
                break
        return student
