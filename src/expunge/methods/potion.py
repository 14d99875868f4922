"""Dampen more and more weights until the discovered part of a poison is forgotten (Potion, Schoepf et al., 2406.09173).

As ASSD, theta <- theta * I_D / I_F if I_F / I_D is above its percentile 100 - ln(1 + 100 s), but I is the mean over
examples of |d ||f(x)|| / d theta|, with f(x) the logits (for a text those of all its decisions). I_F is over the forget
set (F), I_D over forget and retain set together (D); undiscovered poison is in the retain set, and should be forgotten
too. The method uses no label, and outliers have less weight in the norm than in its square. The share s starts at
`start` * |F| / |D| and grows by `growth`. Each try starts from the weights of the method's input model. The search ends
when few enough forget examples are known, or after `tries`; the last try is the result.

Stopping rule. The authors' code stops at rho = 0.2 times the original accuracy; that of 2505.17730 at this or 0.2, in
effect 0.2. This is twice chance for ten classes, but chance itself for five, and below chance for two. The rule here
uses the knowledge *above chance*: known <= chance + left * (original - chance), with chance = 1 / number of labels. For
examples that the original knows, `left` = 1/9 means 0.2 for ten classes, 0.12 for a hundred, and 0.56 for two. For a
language model "known" means recited completely. The original is the case's: after another method, what that one left is
compared with what there was to forget, while importances and tries belong to the input model.

The authors' own repository starts at |F| / |D| / 25 and tries 500 times; 2505.17730 starts as here and tries 50 times,
so s grows to 107 times its start. Both take the retain set alone for D, so their quotients are larger, and infinite
ones are left out of the percentile. Both take absolute values of gradients of batch means, in which the gradients of
single examples cancel.

Cost: one separate gradient per forget example and per retain example, for any number of tries: looks at the forget set
are forward passes. If the budget is too small, a random part of the retain set is used; if it allows no retain example,
the model does not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import msgspec
import torch
from torch import Tensor, nn

from expunge.base.part import Count, Positive, Share
from expunge.core.decisions import Decisions, per_example
from expunge.core.job import Job
from expunge.core.method import Method
from expunge.core.refusals import require_trainable
from expunge.methods._dampening import adaptive_alpha, dampen, forget_share, importances
from expunge.methods._gradients import mean_absolute_gradient
from expunge.train.evaluation import known_share


@dataclass(frozen=True)
class Potion(Method):
    """Label-free adaptive dampening, searched for the smallest share that forgets."""

    held: ClassVar[float] = 8.5
    needs: ClassVar[frozenset[str]] = frozenset({"decisions"})
    cite: ClassVar[str] = "schoepf2024potion"
    paper: ClassVar[str] = "Potion, 2024"
    effort: ClassVar[str] = "R + F"

    left: Share = 1 / 9
    """Stop when at most this share of the knowledge of the forget set above chance is left."""
    start: Positive = 1.0
    """The first share s, in units of |F| / |D|."""
    growth: Annotated[float, msgspec.Meta(gt=1)] = 1.1
    """Factor on s from one try to the next."""
    tries: Count = 50
    """Largest number of values of s."""

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Measure both importances once, then search."""
        problem, measure = job.problem, partial(mean_absolute_gradient, number=norm)
        measured = importances(student, job, measure)
        if measured is None:
            return student
        parameters = require_trainable(student)
        start = [parameter.detach().clone() for parameter in parameters]
        quotients, share = measured.quotients(), self.start * forget_share(problem)
        enough = few_enough(known_share(job.original, problem, problem.forget), len(problem.data.labels), self.left)
        for _ in range(self.tries):
            with torch.no_grad():
                for parameter, values in zip(parameters, start, strict=True):
                    parameter.copy_(values)
            dampen(student, measured, adaptive_alpha(quotients, share))
            if known_share(student, problem, problem.forget) <= enough:
                break
            share *= self.growth
        return student


def few_enough(original: float, labels: int, left: float) -> float:
    """The share of known forget examples at which the search ends, given the original model's share."""
    # The known share is a quotient of two counts; the small number allows for rounding in the comparison.
    return (1 - left) / labels + left * original + 1e-12


def norm(decisions: Decisions, size: int) -> Tensor:
    """Sum over examples of the norm of each one's logits."""
    squares = per_example(decisions.logits.square().sum(1), decisions.example, size)
    # At 0 the root has no derivative; 0 is used instead.
    return squares[squares > 0].sqrt().sum()
