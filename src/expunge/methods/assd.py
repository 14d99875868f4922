"""SSD that chooses its own threshold from how much is to be forgotten (ASSD, Schoepf et al., 2402.10098).

As SSD with lambda = 1: theta <- theta * I_D / I_F wherever I_F > alpha * I_D, I the mean over examples of the squared
gradient of an example's log-likelihood. Alpha is the percentile 100 - ln(1 + 100 |F| / |D|) of I_F / I_D over all
trainable weights together, so that ln(1 + 100 |F| / |D|) per cent of them are selected: 0.7 of 100 weights for a
hundredth of the data, 2.4 for a tenth. What is exactly at the threshold is not selected, and no factor is above 1:
where a model has no loss on the forget set, as on a poison that it learned well, I_F is smaller and little happens.

As in SSD, the paper's importance is per example, and that of published code depends on its batches
(`benchmarks/importance.py` shows how much). Weights on which no example depends have no quotient and are left out of
the percentile, there and here; published code leaves out infinite quotients too, which occur where D does not hold F.

Cost: one gradient per forget example and one per retain example, each example's by itself. A budget that is too small
takes a random part of the retain set; one without room for any leaves the model as is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from expunge.core.contracts import Method
from expunge.core.job import Job
from expunge.methods._dampening import adaptive_alpha, dampen, forget_share, importances
from expunge.methods._gradients import mean_squared_gradient


@dataclass(frozen=True)
class ASSD(Method):
    """Adaptive selective synaptic dampening."""

    needs: ClassVar[frozenset[str]] = frozenset({"decisions"})
    cite: ClassVar[str] = "schoepf2024assd"
    paper: ClassVar[str] = "ASSD, 2024"
    effort: ClassVar[str] = "R + F"

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Measure both importances, find the threshold, dampen once."""
        measured = importances(student, job, mean_squared_gradient)
        if measured is not None:
            dampen(student, measured, adaptive_alpha(measured.quotients(), forget_share(job.problem)))
        return student
