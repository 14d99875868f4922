"""How sharply the retain loss is curved, compared with the planned step size; and how large a batch should be.

Gradient descent leaves a minimum if the largest eigenvalue of the loss's Hessian exceeds 2 (1 + momentum) / step size
(Cohen et al. 2021, who observe that training moves to that edge). The Hessian is that of the mean loss in evaluation
mode, in all trainable weights. On average, a sample's largest eigenvalue exceeds that of the whole set. The interval
covers the choice of the examples at fixed eigenvectors, and the error of Lanczos.

The gradient noise scale is tr(covariance of one example's gradient) / |mean gradient|^2 (McCandlish et al. 2018): with
much smaller batches, steps are mostly noise. Near a minimum the mean gradient cannot be distinguished from 0, and the
scale is infinite.

Cost: at most `epochs` passes over the training set, in total at most `HVP` (`limit` + `eigenvalues`) + 1 gradients per
example. The largest eigenvalue takes about 8 products.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from expunge.base.errors import SpecError
from expunge.base.part import Count, Positive
from expunge.core.case import Case
from expunge.core.contracts import Diagnostic
from expunge.core.data import Batch
from expunge.core.generators import generator_of
from expunge.diagnostics._sample import Momentum, Sample, about, sampled
from expunge.evidence.estimate import Estimate
from expunge.evidence.intervals import t_quantile
from expunge.numerics.lanczos import Eigenpairs, lanczos
from expunge.numerics.linops import bends, differentiable, hessian
from expunge.train.evaluation import batch_loss
from expunge.train.loop import evaluation_size, in_order

TOP = "largest eigenvalue of the retain loss's Hessian"
EDGE = "the step size as a share of the largest that holds the retain loss"
NOISE = "gradient noise scale of the retain set"

BATCHES = 8
"""Parts of the sample; their scatter gives the error."""
TOGETHER = 256
"""Examples per pass if no result per part is needed."""
HVP = 3
"""Cost of an example's Hessian product, in gradients: two forward passes and four half backward passes."""
PART = 65536
"""Weights whose gradients are converted to double precision at a time."""


@dataclass(frozen=True)
class Sharpness(Diagnostic):
    """Top eigenvalues of the retain loss against 2 / step size, and the gradient noise scale."""

    version: ClassVar[int] = 3

    learning_rate: Positive = 2e-4
    """Planned step size."""
    momentum: Momentum = 0.9
    """Momentum of the heavy ball; the library's `sgd` has 0.9."""
    eigenvalues: Count = 3
    """Number of eigenvalues, the largest first."""
    retain: Count = 400
    """Retain examples to measure; fewer if the budget does not allow as many."""
    limit: Count = 12
    """Largest number of Hessian products."""
    tolerance: Positive = 5e-2
    """Largest error of Lanczos, relative to the largest absolute eigenvalue found; the sample's error is larger."""
    epochs: Positive = 1.4
    """Largest cost of this diagnostic, in passes over the training set. With ten million weights, the linear algebra
    takes about as long as half a pass in addition."""

    def __call__(self, case: Case, seed: int) -> dict[str, Estimate]:
        """Eigenvalues in nats per squared weight, the step size as a share, the noise scale in examples.

        Raises:
            SpecError: No parameter of the model takes a gradient, or the budget affords no two examples.
            RunError: A loss is not finite, or a module has no second derivative or a wrong one; names it.
        """
        generator = generator_of(seed, "sharpness")
        afforded = int(self.epochs * len(case.problem.train) / (HVP * (self.limit + self.eigenvalues) + 1))
        count = min(self.retain, afforded, len(case.problem.retain))
        if count < 2:
            finding = f"affords {afforded} examples with limit = {self.limit}"
            raise SpecError(finding, where="epochs", allowed="at least 2", remedy="raise epochs, or lower limit")
        sample = sampled(case, count, 0, generator)
        size = max(count // BATCHES, 1)
        # A smaller batch at the end would have the same weight as the full ones.
        ids = sample.retain[: count // size * size]
        with about(case):
            # A product reads all weights from memory, whatever the batch size: use few large batches here.
            together = list(in_order(case.problem.data, ids, min(TOGETHER, evaluation_size(case.problem.data))))
            product = hessian(batch_loss(sample.problem), sample.model, differentiable(sample.model), together)
            wanted = min(self.eigenvalues, self.limit)
            pairs = lanczos(product, product.like, generator, top=wanted, tolerance=self.tolerance, limit=self.limit)
            gradients, each = _of_batches(sample, pairs, list(in_order(case.problem.data, ids, size)))
        left = 1 - len(ids) / len(case.problem.retain)
        errors = t_quantile(len(each) - 1) * each.std(0) * math.sqrt(left / len(each))
        values = list(zip(pairs.values.tolist(), (errors + pairs.bounds).tolist(), strict=True))
        return {**self._eigenvalues(values, len(each)), NOISE: noise_scale(inner_products(gradients), size, left)}

    def _eigenvalues(self, values: list[tuple[float, float]], draws: int) -> dict[str, Estimate]:
        unit = "nats per squared weight"
        estimates = {
            TOP if place == 0 else f"eigenvalue {place + 1}": Estimate(v, v - e, v + e, draws, unit, "reference")
            for place, (v, e) in enumerate(values)
        }
        share = self.learning_rate / (2 * (1 + self.momentum))
        top = estimates[TOP]
        # Without a positive eigenvalue every step size is stable: the share is 0, never negative.
        value, low, high = (share * max(end, 0.0) for end in (top.value, top.low, top.high))
        edge = Estimate(value, low, high, draws, "ratio", "lower")
        return {TOP: top, EDGE: edge, **estimates}

    def summary(self, estimates: Mapping[str, Estimate]) -> str:
        """Whether descent on the retain set stays at its minimum with the planned step size."""
        edge, noise = estimates[EDGE], estimates[NOISE]
        text = f"The planned step size is {100 * edge.value:.2g} % of the largest with which gradient descent stays at "
        text += "the minimum of the retain set. "
        if edge.low > 1:
            text += "It leaves that minimum, and damages retained examples, before it forgets anything. "
        if math.isfinite(noise.value):
            return text + f"A batch of about {max(noise.value, 1):,.0f} has as much signal as noise."
        return text + "The retain set's mean gradient cannot be distinguished from 0: steps on it are mostly noise."


def noise_scale(products: Tensor, size: int, left: float) -> Estimate:
    """tr(covariance) / |mean|^2 of one example's gradient, with a jackknife over batches on the logarithm.

    Args:
        products: Inner products of the batches' mean gradients, `[g, g]`.
        size: Examples per batch.
        left: Share of the set that is in none of the batches.

    Returns:
        The scale in examples; infinite if the mean gradient is no longer than chance would make it.
    """

    def scale(kept: Tensor) -> float:
        inner = products[kept][:, kept]
        spread = (inner.diagonal().mean() - inner.mean()) * len(kept) / (len(kept) - 1)
        signal = float(inner.mean() - spread * left / len(kept))
        return size * float(spread) / signal if signal > 0 else math.inf

    count = len(products)
    everything = torch.arange(count)
    value = scale(everything)
    left_out = [scale(everything[everything != place]) if count > 2 else math.inf for place in range(count)]
    without = torch.tensor(left_out, dtype=torch.float64)
    if not math.isfinite(value) or not without.isfinite().all() or not (without > 0).all():
        return Estimate(value, math.nan, math.nan, count, "examples", "reference")
    logs = without.log()
    error = math.sqrt(float((logs - logs.mean()).square().sum()) * (count - 1) / count * left)
    factor = math.exp(t_quantile(count - 1) * error)
    return Estimate(value, value / factor, value * factor, count, "examples", "reference")


def _of_batches(sample: Sample, pairs: Eigenpairs, batches: list[Batch]) -> tuple[Tensor, Tensor]:
    """Each batch's mean gradient `[batches, p]`, and its curvature along each eigenvector `[batches, m]`."""
    parameters, loss = differentiable(sample.model), batch_loss(sample.problem)
    vectors = pairs.vectors.T.contiguous()
    gradients = vectors.new_empty(len(batches), vectors.shape[1])
    each = torch.empty(len(batches), len(vectors), dtype=torch.float64)
    for place, batch in enumerate(batches):
        gradients[place], each[place] = bends(loss, sample.model, parameters, batch, vectors)
    return gradients, each


def inner_products(rows: Tensor) -> Tensor:
    """Inner products of rows `[g, p]`, `[g, g]` in double precision; never converts all rows at once."""
    parts = (part.double() for part in rows.split(PART, dim=1))
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for part in parts:
        total.addmm_(part, part.T)
    return total.cpu()
