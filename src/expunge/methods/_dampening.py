"""Shared by SSD and its relatives: two importances of every weight, and the dampening of weights by them.

A weight with I_F > alpha * I_D is multiplied by min(lambda * I_D / I_F, 1). F is the forget set, and D is the forget
and the retain set together. So I_F is at most |D| / |F| times I_D, and I_D is 0 only if I_F is 0.

The relatives that choose alpha themselves use a percentile of I_F / I_D over all trainable weights. The quotient is
undefined if both are 0, for a weight without influence on any example. Such weights are left out, so that additional
units that never fire change nothing; published code does the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.core.case import Meter
from expunge.core.job import Job
from expunge.core.modules import trainable
from expunge.core.problem import Problem
from expunge.numerics.real import as_real

Measure = Callable[[nn.Module, Problem, Tensor, Meter], list[Tensor] | None]
"""The importance of each trainable parameter to a set of examples, as in `_gradients.py`."""


@dataclass(frozen=True)
class Importances:
    """One tensor per trainable parameter, of the shape of its real view: importance to the forget set, and to all data.

    The two parts of a complex weight have an importance each.
    """

    forget: list[Tensor]
    whole: list[Tensor]

    def quotients(self) -> Tensor:
        """I_F / I_D of all weights that have any influence, in ascending order, float64."""
        pairs = zip(self.forget, self.whole, strict=True)
        quotients = torch.cat([(forget.cpu().double() / whole.cpu().double()).flatten() for forget, whole in pairs])
        return quotients[quotients.isfinite()].sort().values


def importances(student: nn.Module, job: Job, measure: Measure) -> Importances | None:
    """Both importances; `None` if the budget does not suffice for any retain example.

    If the budget is too small for the whole retain set, a random part of it is used.
    """
    problem = job.problem
    # In random order, so that a small budget uses a random part.
    retain = problem.retain[torch.randperm(len(problem.retain), generator=job.generator("retain"))]
    forgotten = measure(student, problem, problem.forget, job.meter)
    retained = measure(student, problem, retain, job.meter)
    if forgotten is None or retained is None:
        return None
    share = forget_share(problem)
    whole = [share * forget + (1 - share) * kept for forget, kept in zip(forgotten, retained, strict=True)]
    return Importances(forgotten, whole)


def forget_share(problem: Problem) -> float:
    """|F| / |D|."""
    return len(problem.forget) / (len(problem.forget) + len(problem.retain))


def dampen(student: nn.Module, measured: Importances, alpha: float, dampening: float = 1.0) -> None:
    """Multiply the student's trainable weights by their factors, in place."""
    with torch.no_grad():
        for parameter, forget, whole in zip(trainable(student), measured.forget, measured.whole, strict=True):
            as_real(parameter).mul_(factors(forget, whole, alpha, dampening))


def factors(forget: Tensor, whole: Tensor, alpha: float, dampening: float) -> Tensor:
    """The factor of each weight: min(dampening * whole / forget, 1) if forget > alpha * whole, otherwise 1.

    Args:
        forget: Importance to the forget set.
        whole: Importance to all data, in the same shape.
        alpha: Threshold of selection.
        dampening: The paper's lambda; smaller dampens harder.

    Returns:
        Numbers in [0, 1], in the same shape.
    """
    # A weight with `forget` = 0 is not selected, and its quotient is not used.
    factor = (dampening * whole / forget).clamp(max=1)
    return torch.where(forget > alpha * whole, factor, torch.ones_like(forget))


def adaptive_alpha(quotients: Tensor, share: float) -> float:
    """The threshold of 2402.10098: the percentile 100 - ln(1 + 100 * share) of the quotients, at least the smallest.

    Args:
        quotients: In ascending order, `[n]`.
        share: Share of the data to forget; a search may use values above 1.

    Returns:
        The percentile, interpolated linearly between neighbours; without quotients infinity, which selects nothing.
    """
    if len(quotients) == 0:
        return math.inf
    place = max(1 - math.log1p(100 * share) / 100, 0) * (len(quotients) - 1)
    below = math.floor(place)
    low, high = float(quotients[below]), float(quotients[math.ceil(place)])
    return low + (place - below) * (high - low)
