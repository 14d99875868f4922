"""Dampen more and more weights until the discovered part of a poison is forgotten (Potion, Schoepf et al., 2406.09173).

As ASSD, theta <- theta * I_D / I_F wherever I_F / I_D is over its percentile 100 - ln(1 + 100 s), but I is the mean
over examples of |d ||f(x)|| / d theta|, with f(x) the logits (for a text those of all its decisions): no label, and a
norm, in which outliers weigh less than in its square. The share s begins at `start` * |F| / |D| and grows by `growth`;
each try begins at the original weights, and the search ends once few enough forget examples are known, or after
`tries`; then the last try is the result. Undiscovered forget examples are part of D, and are meant to be forgotten too.

The rule to stop. The authors' code asks for rho = 0.2 times the original accuracy, that of 2505.17730 for this or 0.2,
which comes to 0.2. That is twice chance for ten classes, but chance itself for five, and below it for two. The rule
here is about what is left *above chance*: known <= chance + left * (original - chance), with chance = 1 / number of
labels. For examples that the original knows, `left` = 1/9 means 0.2 of ten classes, 0.12 of a hundred, and 0.56 of two.
For a language model "known" means recited whole.

The authors' own repository starts at |F| / |D| / 25 and tries 500 times; 2505.17730 starts as here and tries 50 times,
which brings s to 107 times its start. Both take absolute values of gradients of batch means, in which the gradients of
single examples cancel.

Cost: one gradient per forget example and one per retain example, each example's by itself, however often it is tried:
looks at the forget set are forward passes. A budget that is too small takes a random part of the retain set; one
without room for any leaves the model as is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import msgspec
import torch
from torch import Tensor, nn

from expunge.base.part import Count, Positive, Share
from expunge.core.contracts import Method, require_trainable
from expunge.core.job import Job
from expunge.core.objective import Decisions, per_example
from expunge.methods._dampening import adaptive_alpha, dampen, forget_share, importances
from expunge.methods._gradients import mean_absolute_gradient
from expunge.train.evaluation import known_share


@dataclass(frozen=True)
class Potion(Method):
    """Label-free adaptive dampening, searched for the smallest share that forgets."""

    needs: ClassVar[frozenset[str]] = frozenset({"decisions"})
    cite: ClassVar[str] = "schoepf2024potion"
    paper: ClassVar[str] = "Potion, 2024"
    effort: ClassVar[str] = "R + F"

    left: Share = 1 / 9
    """Stop once at most this share of what is known of the forget set above chance is left."""
    start: Positive = 1.0
    """The first share s, in units of |F| / |D|."""
    growth: Annotated[float, msgspec.Meta(gt=1)] = 1.1
    """Factor on s from one try to the next."""
    tries: Count = 50
    """Most values of s that are tried."""

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Measure both importances once, then search."""
        problem, measure = job.problem, partial(mean_absolute_gradient, number=norm)
        measured = importances(student, job, measure)
        if measured is None:
            return student
        parameters = require_trainable(student)
        original = [parameter.detach().clone() for parameter in parameters]
        quotients, share = measured.quotients(), self.start * forget_share(problem)
        enough = few_enough(known_share(student, problem, problem.forget), len(problem.data.labels), self.left)
        for _ in range(self.tries):
            with torch.no_grad():
                for parameter, values in zip(parameters, original, strict=True):
                    parameter.copy_(values)
            dampen(student, measured, adaptive_alpha(quotients, share))
            if known_share(student, problem, problem.forget) <= enough:
                break
            share *= self.growth
        return student


def few_enough(original: float, labels: int, left: float) -> float:
    """The share of known forget examples at which the search ends, from that of the original model."""
    # The known share is a count over a count; the small number makes up for rounding in the comparison.
    return (1 - left) / labels + left * original + 1e-12


def norm(decisions: Decisions, size: int) -> Tensor:
    """Sum over examples of the norm of each one's logits."""
    squares = per_example(decisions.logits.square().sum(1), decisions.example, size)
    # At 0 the root has no derivative; it is taken to be 0.
    return squares[squares > 0].sqrt().sum()
