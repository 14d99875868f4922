"""What a diagnostic of curvature reads: a random part of both sets that its budget affords, and the prepared model.

Budgets are in passes over the training set. A Gram matrix of R columns takes R (R / BLOCK + 1) / 2 gradients, and a
block and two more to compare; three times as many where some parameter has no product form and its gradients cannot be
kept.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from expunge.base.errors import RunError, SpecError
from expunge.core.case import Case
from expunge.core.objective import Decisions, decision_losses, per_example
from expunge.core.problem import Problem
from expunge.numerics.linops import differentiable
from expunge.train.evaluation import evaluate

Momentum = Annotated[float, msgspec.Meta(ge=0, lt=1)]
"""Of the heavy ball, 0 to below 1."""

BLOCK = 128
"""Columns per pass."""


@dataclass(frozen=True)
class Sample:
    """A model in evaluation mode, and ids of either set in random order."""

    model: nn.Module
    problem: Problem
    retain: Tensor
    forget: Tensor

    @property
    def ids(self) -> Tensor:
        """Of both, those of the retain set first."""
        return torch.cat([self.retain, self.forget])


def sampled(case: Case, retain: int, forget: int, generator: torch.Generator) -> Sample:
    """So many examples of either set, or all that there are.

    Raises:
        SpecError: No parameter of the model takes a gradient.
        RunError: The loss of one of the examples is not finite.
    """
    with about(case):
        differentiable(case.original)
        model = copy.deepcopy(case.original).eval()
        sets = ((case.problem.retain, retain), (case.problem.forget, forget))
        first, second = (ids[torch.randperm(len(ids), generator=generator)[:count]] for ids, count in sets)
        sample = Sample(model, case.problem, first, second)
        _require_finite(sample)
    return sample


def affordable(wanted: tuple[int, int], rows: int, gradients: float, *, products: bool) -> tuple[int, int]:
    """As many examples of either set as a Gram matrix of so many rows each may have; the larger part is cut first.

    Raises:
        SpecError: Not even one of each.
    """
    retain, forget = wanted
    while gram_cost((retain + forget) * rows, products=products) > gradients:
        if retain + forget <= 2:
            least = gram_cost(2 * rows, products=products)
            raise SpecError(
                f"allows {gradients:.0f} gradients, and one example of each set takes {least:.0f}",
                where="epochs",
                remedy="raise epochs, or lower rows",
            )
        retain, forget = (retain - 1, forget) if retain >= forget else (retain, forget - 1)
    return retain, forget


def gram_cost(columns: int, *, products: bool) -> float:
    """Most gradients that a Gram matrix of so many columns takes, with product forms for all parameters or not."""
    passes = (1 if products else 3) * columns * (math.ceil(columns / BLOCK) + 1) / 2
    return passes + min(columns, BLOCK) + 2


@contextmanager
def about(case: Case) -> Iterator[None]:
    """Errors of the numerics inside say whose model they are about."""
    kind = type(case.original).__name__
    try:
        yield
    except (SpecError, RunError) as error:
        # To the numerics the whole is the model: the same place, which is said once.
        inner = type(error)(
            error.finding,
            where=error.where.removeprefix(f"model ({kind})"),
            allowed=error.allowed,
            remedy=error.remedy,
        )
        raise inner.at(f"original ({kind})") from error


def _require_finite(sample: Sample) -> None:
    def summed(decisions: Decisions, size: int) -> Tensor:
        return per_example(decision_losses(decisions), decisions.example, size)

    diverged = ~np.isfinite(evaluate(sample.model, sample.problem, sample.ids, summed))
    if diverged.any():
        finding = f"the loss of example {int(sample.ids[int(diverged.argmax())])} is not finite"
        raise RunError(finding, where="loss", remedy="look at the model's weights: its training diverged")
