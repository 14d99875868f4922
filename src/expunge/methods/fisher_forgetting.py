"""Add noise to each weight, with more noise if the retain set depends less on it (Golatkar et al., 1911.04933).

theta <- theta + n with n ~ N(0, alpha * F^-power), its standard deviation at most `cap`. F is the diagonal of the
Fisher information on the retain set: the mean over examples of the squared gradient of log p(y | x), y drawn from the
model's own prediction (one draw per decision, which makes the estimate unbiased). Power 1/2 is the paper's optimum for
forgetting at a given loss, with alpha = sqrt(lambda * sigma_h^2).

The widely copied code has power 1, weights all classes' gradients by their probability instead of drawing one class (so
it computes one gradient per example and class), caps 1/F at 1000 (at 100 in the last layer), averages variances within
a row, and multiplies them by 10 in the last layer and in one-dimensional parameters. The copy in the repositories of
Unlearn-Sparse and SalUn squares means over batches of 32. If a whole class is forgotten, that code also replaces the
class's row of the last layer by noise of variance 0.001, which removes the class whatever F says; there is no such
branch here. A shorter variant uses the data's labels and caps the standard deviation at 0.001. A weight without any
influence has F = 0; only the cap keeps its variance finite.

Cost: one separate gradient per retain example. If the budget is too small, a random part of the retain set is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from expunge.base.part import NonNegative, Positive
from expunge.core.job import Job
from expunge.core.method import Method
from expunge.core.modules import trainable
from expunge.methods._gradients import mean_squared_gradient
from expunge.methods._noise import standard_normal
from expunge.numerics.real import as_real


@dataclass(frozen=True)
class FisherForgetting(Method):
    """Noise shaped by the inverse Fisher information."""

    held: ClassVar[float] = 3.5
    needs: ClassVar[frozenset[str]] = frozenset({"decisions"})
    version: ClassVar[int] = 2
    cite: ClassVar[str] = "golatkar2020eternal"
    paper: ClassVar[str] = "Fisher forgetting, 2020"
    effort: ClassVar[str] = "R"
    stronger: ClassVar[tuple[str, float]] = ("alpha", 3.0)

    alpha: Positive = 1e-6
    """Scale of the variance: the variance of a weight with F = 1, in squared units of the weights."""
    power: NonNegative = 0.5
    """Exponent of 1/F in the variance: 0.5 in the paper, 1 in its code."""
    cap: Positive = 0.1
    """Largest standard deviation, in units of the weights."""

    def expected_gradients(self, retain: int, forget: int) -> float:
        """One per retain example."""
        return retain

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Measure F, add noise once."""
        problem, noise = job.problem, job.generator("noise")
        retain = problem.retain[torch.randperm(len(problem.retain), generator=job.generator("retain"))]
        fisher = mean_squared_gradient(student, problem, retain, job.meter, job.generator("labels"))
        if fisher is None:
            return student
        with torch.no_grad():
            for parameter, information in zip(trainable(student), fisher, strict=True):
                spread, values = deviation(information, self.alpha, self.power, self.cap), as_real(parameter)
                values.add_(spread * standard_normal(values, noise))
        return student


def deviation(fisher: Tensor, alpha: float, power: float, cap: float) -> Tensor:
    """Standard deviation of the noise, min(sqrt(alpha * fisher^-power), cap), in the shape of `fisher`."""
    return (alpha * fisher.pow(-power)).sqrt().clamp(max=cap)
