"""SSD without labels: a weight matters if it moves the output's squared norm (LFSSD, Foster et al., 2402.19308).

As SSD, theta <- theta * min(lambda * I_D / I_F, 1) wherever I_F > alpha * I_D, but I is the mean over examples of
|d ||f(x)||^2 / d theta|, with f(x) the logits (for a text those of all its decisions). No label is read, neither of the
forget set nor of the rest.

The paper's importance is per example. Published code takes the absolute value of the gradient of a *batch's mean*
norm, in which examples of opposite sign cancel; the larger the batch, the smaller the importance. A first power makes
quotients of importances smaller than the second power of SSD does: alpha and lambda do not carry over from there
either, and the default is the square root of SSD's alpha. I_F is at most |D| / |F| times I_D here too.

Cost: one gradient per forget example and one per retain example, each example's by itself. A budget that is too small
takes a random part of the retain set; one without room for any leaves the model as is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from expunge.base.part import Positive
from expunge.core.contracts import Method
from expunge.core.job import Job
from expunge.core.objective import Decisions
from expunge.methods._dampening import dampen, importances
from expunge.methods._gradients import mean_absolute_gradient


@dataclass(frozen=True)
class LFSSD(Method):
    """Label-free selective synaptic dampening."""

    needs: ClassVar[frozenset[str]] = frozenset({"decisions"})
    cite: ClassVar[str] = "foster2024lfssd"
    paper: ClassVar[str] = "LFSSD, 2024"
    effort: ClassVar[str] = "R + F"

    alpha: Positive = 3.2
    """A weight is dampened where its importance to the forget set is over this many times that to all data; none is at
    |D| / |F| or above."""
    dampening: Positive = 1.0
    """The paper's lambda: smaller dampens harder."""

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
