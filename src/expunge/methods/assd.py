"""SSD that chooses its threshold from the share of data to forget (ASSD, Schoepf et al., 2402.10098).

As SSD with lambda = 1: theta <- theta * I_D / I_F if I_F > alpha * I_D. I is the mean over examples of the squared
gradient of an example's log-likelihood: I_F over the forget set (F), I_D over forget and retain set together (D), as in
SSD. Alpha is the percentile 100 - ln(1 + 100 |F| / |D|) of I_F / I_D over all
trainable weights together. So ln(1 + 100 |F| / |D|) per cent of them are selected: 0.7 of 100 weights for a hundredth
of the data, 2.4 for a tenth. Weights exactly at the threshold are not selected, and no factor is above 1. If a model
has almost no loss on the forget set, as on poison that it learned well, I_F is small and the method changes little.

As in SSD, the paper's importance is per example, and that of published code depends on its batches
(`benchmarks/importance.py` shows how much). The authors' code, in the repositories of Potion and REM, takes the retain
set alone for D. Quotients are larger there, and infinite for a weight on which only forget examples depend. Weights on
which no example depends have no quotient and are left out of the percentile, there and here; that code also leaves out
infinite quotients.

Cost: one separate gradient per forget example and per retain example. If the budget is too small, a random part of the
retain set is used; if it allows no retain example, the model does not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from expunge.core.job import Job
from expunge.core.method import Method
from expunge.methods._dampening import adaptive_alpha, dampen, forget_share, importances
from expunge.methods._gradients import mean_squared_gradient


@dataclass(frozen=True)
class ASSD(Method):
    """Adaptive selective synaptic dampening."""

    held: ClassVar[float] = 7.5
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
