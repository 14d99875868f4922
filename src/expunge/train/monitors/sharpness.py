"""Sharpness while a model trains, beside the largest that its step size can hold.

Sharpness is the largest eigenvalue of the loss's Hessian. On a quadratic, gradient descent at step size eta diverges
along an eigenvector where the eigenvalue exceeds 2 / eta; networks trained on all examples at once come there by
themselves and hover (Cohen et al. 2021, 2103.00065). With momentum beta the edge is 2 (1 + beta) / eta, with Nesterov's
2 (1 + beta) / (eta (1 + 2 beta)). Weight decay adds to every eigenvalue, so that it comes off the edge. With
minibatches training stays below it, and how far says nothing by itself.

Cost: per measurement one forward pass over the given examples and some 5 to 20 Hessian-vector products on them, each of
about two gradients. A measurement begins near the vector of the last one: on a small network on digits, every 10 steps,
that took 5 products where a random start took 9.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.base.part import Count, Positive
from expunge.base.seeds import derive
from expunge.core.contracts import Monitor
from expunge.core.data import Data
from expunge.numerics.lanczos import lanczos
from expunge.numerics.linops import differentiable, hessian
from expunge.train.monitors._measure import (
    MeanLoss,
    fixed,
    mean_cross_entropy,
    mean_over,
    require_every,
    sample,
    untouched,
)

FRESH = 0.3
"""Share of a random direction beside the last vector: the top may have moved to a vector orthogonal to it."""


@dataclass(frozen=True)
class Sharpness(Monitor):
    """The Hessian's largest eigenvalue on some training examples, beside the largest that SGD's step size can hold."""

    cite: ClassVar[str] = "cohen2021edge"

    every: Count = 50
    """Steps between measurements."""
    examples: Count = 200
    """Training examples to measure on, drawn once."""
    tolerance: Positive = 1e-3
    """Largest residual of the eigenvalue, relative to it."""
    limit: Count = 100
    """Most Hessian-vector products in a measurement."""

    def __call__(self, data: Data, ids: Tensor, optimizer: torch.optim.Optimizer, seed: int) -> SharpnessMonitor:
        """The monitor of one training; the edge is infinite for optimisers other than SGD."""
        return SharpnessMonitor(
            mean_cross_entropy(data),
            sample(data, ids, self.examples, seed),
            optimizer if type(optimizer) is torch.optim.SGD else None,
            every=self.every,
            tolerance=self.tolerance,
            limit=self.limit,
            seed=derive(seed, "sharpness"),
        )


class SharpnessMonitor:
    """Records the Hessian's largest eigenvalue every so many steps.

    Args:
        loss: From the module and a batch, the batch's mean loss as a scalar.
        batches: What it is measured on: a fixed part of the training examples, in one batch or several.
        optimizer: `torch.optim.SGD`, whose present step size, momentum and weight decay give the edge; `None` for none.
        every: Steps between measurements; other calls return at once.
        tolerance: Largest residual, relative to the eigenvalue; the value's error is of second order in it. A loose one
            may stop at the second largest where the largest has just overtaken it.
        limit: Most products in a measurement.
        seed: Of the random directions.

    Raises:
        SpecError: There is no batch, `every` is below 1, or the optimiser has no such edge.
    """

    def __init__(
        self,
        loss: MeanLoss,
        batches: Iterable[Any],
        optimizer: torch.optim.Optimizer | None = None,
        *,
        every: int = 50,
        tolerance: float = 1e-3,
        limit: int = 100,
        seed: int = 0,
    ) -> None:
        require_every(every)
        if optimizer is not None:
            edge_of(optimizer)
        self.loss, self.batches, self.optimizer = loss, fixed(batches), optimizer
        self.every, self.tolerance, self.limit = every, tolerance, limit
        self.steps: list[int] = []
        """When it was measured."""
        self.losses: list[float] = []
        """Mean loss on the given examples."""
        self.sharpness: list[float] = []
        """Largest eigenvalue; NaN where the loss is not finite."""
        self.bounds: list[float] = []
        """Some eigenvalue is at most this far from it."""
        self.edges: list[float] = []
        """The largest eigenvalue that the step size holds; infinite without an optimiser."""
        self.products: list[int] = []
        """Hessian-vector products that the measurement took."""
        self._generator = torch.Generator().manual_seed(seed)
        self._last: Tensor | None = None

    def __call__(self, step: int, model: nn.Module) -> None:
        """Measure, if the step is a multiple of `every`.

        Raises:
            SpecError: No parameter takes a gradient, or the optimiser's groups no longer share a step size.
            RunError: A module has no second derivative; names it.
        """
        if step % self.every:
            return
        with untouched(model):
            loss = mean_over(self.loss, model, self.batches)
            value, bound, products = self._top(model) if math.isfinite(loss) else (math.nan, math.nan, 0)
        self.steps.append(step)
        self.losses.append(loss)
        self.sharpness.append(value)
        self.bounds.append(bound)
        self.edges.append(math.inf if self.optimizer is None else edge_of(self.optimizer))
        self.products.append(products)

    @property
    def record(self) -> dict[str, list[int] | list[float]]:
        """All of it by name, as plain data, for a table, a file or a plot."""
        return {
            "step": self.steps,
            "loss": self.losses,
            "sharpness": self.sharpness,
            "bound": self.bounds,
            "edge": self.edges,
            "products": self.products,
        }

    def _top(self, model: nn.Module) -> tuple[float, float, int]:
        product = hessian(self.loss, model, differentiable(model), self.batches)
        like, start = product.like, None
        if self._last is not None and self._last.shape == like.shape:
            drawn = torch.randn(len(like), generator=self._generator, dtype=torch.float64)
            start = self._last.to(drawn) + FRESH * drawn / drawn.norm()
        found = lanczos(product, like, self._generator, tolerance=self.tolerance, limit=self.limit, start=start)
        self._last = found.vectors[:, 0].cpu()
        return float(found.values[0]), float(found.bounds[0]), found.products


def edge_of(optimizer: torch.optim.Optimizer) -> float:
    """The largest eigenvalue of a quadratic on which such steps do not diverge.

    Raises:
        SpecError: It is no plain SGD, or its groups have different settings.
    """
    if type(optimizer) is not torch.optim.SGD:
        raise SpecError(
            f"{type(optimizer).__name__} rescales its steps, so that no eigenvalue of the Hessian is its edge",
            where="optimizer",
            allowed="torch.optim.SGD",
            remedy="pass optimizer=None to record sharpness alone",
        )
    names = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")
    groups = {tuple(group[name] for name in names) for group in optimizer.param_groups}
    if len(groups) > 1:
        raise SpecError("its groups have different settings", where="optimizer", remedy="pass optimizer=None")
    rate, momentum, dampening, decay, nesterov, maximize = next(iter(groups))
    if maximize or not rate > 0:
        raise SpecError("climbs, or does not move", where="optimizer", remedy="pass optimizer=None")
    reach = 2 * (1 + momentum) / (1 + 2 * momentum if nesterov else 1 - dampening)
    return float(reach / rate - decay)
