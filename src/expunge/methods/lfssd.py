"""SSD without labels: importance is the effect of a weight on the output's norm (LFSSD, Foster et al., 2402.19308).

As SSD, theta <- theta * min(lambda * I_D / I_F, 1) if I_F > alpha * I_D, but I is the mean over examples of
|d ||f(x)||^2 / d theta|, with f(x) the logits (for a text those of all its decisions). No label is used.

The paper's importance is per example. Published code takes the absolute value of the gradient of a *batch's mean*
norm, in which examples of opposite sign cancel: the larger the batch, the smaller the importance. The first power gives
smaller quotients of importances than the second power in SSD. So alpha and lambda of SSD do not carry over; the default
alpha is the square root of SSD's. I_F is at most |D| / |F| times I_D here too.

Cost: one separate gradient per forget example and per retain example. If the budget is too small, a random part of the
retain set is used; if it allows no retain example, the model does not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from expunge.base.part import Positive
from expunge.core.decisions import Decisions
from expunge.core.job import Job
from expunge.core.method import Method
from expunge.methods._dampening import dampen, importances
from expunge.methods._gradients import mean_absolute_gradient


@dataclass(frozen=True)
class LFSSD(Method):
    """Label-free selective synaptic dampening."""

    held: ClassVar[float] = 3.5
    needs: ClassVar[frozenset[str]] = frozenset({"decisions"})
    cite: ClassVar[str] = "foster2024lfssd"
    paper: ClassVar[str] = "LFSSD, 2024"
    effort: ClassVar[str] = "R + F"
    stronger: ClassVar[tuple[str, float]] = ("alpha", 0.5)

    alpha: Positive = 3.2
    """A weight is dampened if its importance to the forget set is more than this many times its importance to all data.
    At |D| / |F| or above no weight is dampened."""
    dampening: Positive = 1.0
    """The paper's lambda: a smaller value dampens more."""

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Measure both importances, dampen once."""
        measure = partial(mean_absolute_gradient, number=squared_norm)
        measured = importances(student, job, measure)
        if measured is not None:
            dampen(student, measured, self.alpha, self.dampening)
        return student


def squared_norm(decisions: Decisions, size: int) -> Tensor:
    """Sum over examples of the squared norm of each one's logits."""
    return decisions.logits.square().sum()
