"""Sharpness during training, compared with the largest sharpness at which the step size is stable (the edge).

Sharpness is the largest eigenvalue of the loss's Hessian. On a quadratic, gradient descent at step size eta diverges
along an eigenvector whose eigenvalue exceeds 2 / eta. Networks that train on all examples at once reach this edge by
themselves and stay near it (Cohen et al. 2021, 2103.00065). With momentum beta the edge is 2 (1 + beta) / eta, with
Nesterov's 2 (1 + beta) / (eta (1 + 2 beta)). Weight decay adds to every eigenvalue, so it is subtracted from the edge.
With minibatches, training stays below the edge; the distance alone says nothing.

Cost: per measurement one forward pass over the given examples and about 5 to 20 Hessian-vector products on them, each
of about two gradients. A measurement starts near the vector of the last one: on a small network on digits, every 10
steps, that took 5 products; a random start took 9.
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
"""Weight of a random direction added to the last vector: the new top eigenvector may be orthogonal to the last one."""


@dataclass(frozen=True)
class Sharpness(Monitor):
    """The Hessian's largest eigenvalue on some training examples, with the largest at which SGD's steps are stable."""

    cite: ClassVar[str] = "cohen2021edge"

    every: Count = 50
    """Steps between measurements."""
    examples: Count = 200
    """Training examples to measure on, drawn once."""
    tolerance: Positive = 1e-3
    """Largest residual of the eigenvalue, relative to it."""
    limit: Count = 100
    """Largest number of Hessian-vector products per measurement."""

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
    """Records the Hessian's largest eigenvalue every `every` steps.

    Args:
        loss: Maps the module and a batch to the batch's mean loss, a scalar.
        batches: The examples to measure on: a fixed part of the training examples, in one batch or several.
        optimizer: `torch.optim.SGD`; its current step size, momentum and weight decay give the edge. `None` for no
            edge.
        every: Steps between measurements; calls at other steps do nothing.
        tolerance: Largest residual, relative to the eigenvalue; the value's error is of second order in it. With a
            large tolerance, Lanczos may stop at the second largest eigenvalue if the two are nearly equal.
        limit: Largest number of products per measurement.
        seed: Decides the random directions.

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
        """Steps of the measurements."""
        self.losses: list[float] = []
        """Mean loss on the given examples."""
        self.sharpness: list[float] = []
        """Largest eigenvalue; NaN if the loss is not finite."""
        self.bounds: list[float] = []
        """Error bound: some eigenvalue of the Hessian is within this distance of the recorded one."""
        self.edges: list[float] = []
        """The largest eigenvalue at which the step size is stable; infinite without an optimiser."""
        self.products: list[int] = []
        """Hessian-vector products that the measurement took."""
        self._generator = torch.Generator().manual_seed(seed)
        self._last: Tensor | None = None

    def __call__(self, step: int, model: nn.Module) -> None:
        """Measure if the step is a multiple of `every`.

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
        """All measurements by name, as plain data, for a table, a file or a plot."""
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
        pairs = lanczos(product, like, self._generator, tolerance=self.tolerance, limit=self.limit, start=start)
        self._last = pairs.vectors[:, 0].cpu()
        return float(pairs.values[0]), float(pairs.bounds[0]), pairs.products


def edge_of(optimizer: torch.optim.Optimizer) -> float:
    """The largest eigenvalue of a quadratic on which the optimiser's steps do not diverge.

    Raises:
        SpecError: The optimiser is not plain SGD, or its groups have different settings.
    """
    if type(optimizer) is not torch.optim.SGD:
        raise SpecError(
            f"{type(optimizer).__name__} rescales its steps, so no eigenvalue of the Hessian is its edge",
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
        raise SpecError("it maximises, or its step size is 0", where="optimizer", remedy="pass optimizer=None")
    reach = 2 * (1 + momentum) / (1 + 2 * momentum if nesterov else 1 - dampening)
    return float(reach / rate - decay)
