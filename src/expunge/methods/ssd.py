"""Shrink the weights that matter much more to the forget set than to all data (SSD, Foster et al., 2308.07707).

theta <- theta * min(lambda * I_D / I_F, 1) if I_F > alpha * I_D; there is no training. I is the diagonal of the
empirical Fisher information: the mean over examples of the squared gradient of an example's log-likelihood (for a text
the sum over its decisions). I_F is the mean over the forget set (F), I_D over forget and retain set together (D).

This is the paper's importance, per example. The published code squares the gradient of a *batch's mean* loss, so its
importance falls with the batch size, by another factor for the few batches of F than for the many of D. Its alpha and
lambda do not carry over. In both, the forget set is part of D, so I_F is at most |D| / |F| times I_D: with a forget set
of a tenth of the data or more, alpha = 10 selects nothing. The code of 2505.22310 also sums instead of averaging, and
dampens every weight.

Cost: one separate gradient per forget example and per retain example. If the budget is too small, a random part of the
retain set is used; if it allows no retain example, the model does not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from expunge.base.part import Positive
from expunge.core.job import Job
from expunge.core.method import Method
from expunge.methods._dampening import dampen, importances
from expunge.methods._gradients import mean_squared_gradient


@dataclass(frozen=True)
class SSD(Method):
    """Selective synaptic dampening."""

    held: ClassVar[float] = 3.5
    needs: ClassVar[frozenset[str]] = frozenset({"decisions"})
    version: ClassVar[int] = 2
    cite: ClassVar[str] = "foster2024ssd"
    paper: ClassVar[str] = "SSD, 2024"
    effort: ClassVar[str] = "R + F"
    stronger: ClassVar[tuple[str, float]] = ("alpha", 0.5)

    alpha: Positive = 10.0
    """A weight is dampened if its importance to the forget set is more than this many times its importance to all data.
    At |D| / |F| or above no weight is dampened."""
    dampening: Positive = 1.0
    """The paper's lambda: a smaller value dampens more."""

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Measure both importances, dampen once."""
        measured = importances(student, job, mean_squared_gradient)
        if measured is not None:
            dampen(student, measured, self.alpha, self.dampening)
        return student
