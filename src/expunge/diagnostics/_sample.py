"""The input of a curvature diagnostic: a random part of both sets that its budget affords, and a copy of the model.

Budgets are in passes over the training set. A Gram matrix of R columns takes R (R / BLOCK + 1) / 2 gradients, plus one
block and two gradients for a comparison. It takes three times as many if some parameter has no product form and its
gradients cannot be kept.
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
from expunge.core.decisions import Decisions, decision_losses, per_example
from expunge.core.problem import Problem
from expunge.numerics.linops import differentiable
from expunge.train.evaluation import evaluate

Momentum = Annotated[float, msgspec.Meta(ge=0, lt=1)]
"""Momentum of the heavy ball, from 0 to below 1."""

BLOCK = 128
"""Columns per pass."""


@dataclass(frozen=True)
class Sample:
    """A model in evaluation mode, and ids of both sets in random order."""

    model: nn.Module
    problem: Problem
    retain: Tensor
    forget: Tensor

    @property
    def ids(self) -> Tensor:
        """Ids of both sets, those of the retain set first."""
        return torch.cat([self.retain, self.forget])


def sampled(case: Case, retain: int, forget: int, generator: torch.Generator) -> Sample:
    """This many examples of each set, or all of a smaller set.

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
    """As many examples of each set as the gradients afford, with `rows` rows each; the larger set is cut first.

    Raises:
        SpecError: The gradients do not afford one example of each set.
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
    """Largest number of gradients for a Gram matrix of these columns.

    Args:
        columns: Columns in total.
        products: Whether every parameter has a product form.
    """
    passes = (1 if products else 3) * columns * (math.ceil(columns / BLOCK) + 1) / 2
    return passes + min(columns, BLOCK) + 2


@contextmanager
def about(case: Case) -> Iterator[None]:
    """Make errors from the numerics say which model they are about."""
    kind = type(case.original).__name__
    try:
        yield
    except (SpecError, RunError) as error:
        # The numerics name the whole model as the place; name it once only.
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
        raise RunError(finding, where="loss", remedy="check the model's weights: its training diverged")
