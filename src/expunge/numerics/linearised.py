"""One step of unlearning near a minimum as a random linear map: the random batches and each example's curvature.

    w <- w - step ((1 - mix) mean over a retain batch - mix mean over a forget batch of the gradients), g_i(w) = H_i w

The gradients are linearised at w = 0, where they are all zero, with positive semi-definite H_i. Each step draws new
batches, so a step maps E[w w^T] = M to the map of the mean step plus a variance,

    V(M) = sum over both sets of c (1/n sum_i H_i M H_i - d H M H)

with c = u^2 (1/B - 1/n), d = 0 if a batch takes each example independently with probability B / n; c = u^2 (n - B) /
(B (n - 1)), d = 1 if it takes exactly B, each once; u = 1 - mix or mix, H the set's mean.

Nothing moves outside of the span of the H_i. So H_i = G_i G_i^T needs only the Gram matrix of the columns of all G_i;
its range has one coordinate per eigenvalue that is not zero. An iteration on the columns themselves, without that
projection, would amplify rounding errors outside of the range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from expunge.base.errors import SpecError


@dataclass(frozen=True)
class Draw:
    """How batches are drawn from one set.

    Raises:
        SpecError: The batch is larger than the set, or empty.
    """

    size: int
    """Examples in the whole set, n; the sample may have fewer."""
    batch: int
    """Examples per step, B."""
    bernoulli: bool = False
    """Whether a batch takes each example independently with probability B / n; otherwise exactly B, each once."""

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= self.size:
            raise SpecError(f"found {self.batch}", where="batch", allowed=f"1 to the {self.size} examples of the set")

    @property
    def noise(self) -> float:
        """Variance of a batch mean relative to that of one example, c without the weight."""
        if self.bernoulli or self.size == 1:
            return 1 / self.batch - 1 / self.size
        return (self.size - self.batch) / (self.batch * (self.size - 1))


@dataclass(frozen=True)
class Update:
    """The planned step.

    Raises:
        SpecError: The ascent weight is not within 0 to 1, the step size not positive, or the momentum not below 1.
    """

    step: float
    """Step size."""
    ascent_weight: float
    """Weight of the forget set's gradients, 0 to 1; the retain set has the rest."""
    retain: Draw
    forget: Draw
    momentum: float = 0.0
    """Momentum of the heavy ball, from 0 to below 1."""

    def __post_init__(self) -> None:
        allowed = {
            "ascent_weight": (0 <= self.ascent_weight <= 1, "0 to 1"),
            "step": (0 < self.step < math.inf, "a positive number"),
        }
        allowed["momentum"] = (0 <= self.momentum < 1, "0 to below 1")
        for name, (holds, domain) in allowed.items():
            if not holds:
                raise SpecError(f"found {getattr(self, name)}", where=name, allowed=domain)


@dataclass(frozen=True)
class Curvatures:
    """H_i = G_i G_i^T of the sampled examples, the retained ones first, in coordinates of their common range."""

    factors: Tensor
    """G_i, `[m, r, k]`."""
    retained: int
    """Number of retain examples."""

    def __post_init__(self) -> None:
        if self.factors.ndim != 3 or not 0 < self.retained < len(self.factors):
            finding = f"{self.retained} retained in factors of shape {list(self.factors.shape)}"
            raise SpecError(finding, where="curvatures", allowed="[m, r, k] with examples of both sets")

    @cached_property
    def means(self) -> tuple[Tensor, Tensor]:
        """H_r and H_f, the means over retain and forget examples, `[r, r]` each."""
        retain, forget = (side.transpose(0, 1).flatten(1) for side in self.sides)
        return retain @ retain.T / self.retained, forget @ forget.T / (len(self.factors) - self.retained)

    @property
    def sides(self) -> tuple[Tensor, Tensor]:
        """Factors of the retain and of the forget examples."""
        return self.factors[: self.retained], self.factors[self.retained :]

    def average(self, ascent_weight: float) -> Tensor:
        """A = (1 - mix) H_r - mix H_f, `[r, r]`."""
        return (1 - ascent_weight) * self.means[0] - ascent_weight * self.means[1]

    def noise(self, matrix: Tensor, update: Update) -> Tensor:
        """V(M) of a matrix `[r, r]`, without the squared step size."""
        total = torch.zeros_like(matrix)
        weights, draws = (1 - update.ascent_weight, update.ascent_weight), (update.retain, update.forget)
        for weight, draw, side, mean in zip(weights, draws, self.sides, self.means, strict=True):
            middle = side.mT @ (matrix @ side)
            each = (side @ middle).transpose(0, 1).flatten(1) @ side.transpose(0, 1).flatten(1).T / len(side)
            total += weight**2 * draw.noise * (each if draw.bernoulli else each - mean @ matrix @ mean)
        return total


def of_gram(gram: Tensor, retained: int, *, rows: int = 1, tolerance: float = 1e-10) -> Curvatures:
    """Curvatures from inner products of the columns of all G_i; with one column each, of per-example gradients.

    Args:
        gram: `[m rows, m rows]`, the columns of one example next to each other, the retain set's examples first.
        retained: Number of the m examples that are from the retain set.
        rows: Columns per example, k.
        tolerance: Directions with less than this share of the largest eigenvalue are left out. The radius of the map on
            the remaining directions is at most that of the whole map.

    Returns:
        The curvatures in double precision.

    Raises:
        SpecError: The matrix is not square, not finite, not positive semi-definite, or zero; or one set has no example.
    """
    require_gram(gram, rows)
    values, vectors = torch.linalg.eigh(gram.double())
    top = float(values[-1])
    if not top > 0 or float(values[0]) < -1e-4 * top:
        finding = f"eigenvalues from {float(values[0]):.3g} to {top:.3g}"
        raise SpecError(finding, where="gram", allowed="positive semi-definite and not zero")
    kept = values > tolerance * top
    coordinates = values[kept].sqrt()[:, None] * vectors[:, kept].T
    return Curvatures(coordinates.view(int(kept.sum()), -1, rows).transpose(0, 1), retained)


def require_gram(gram: Tensor, rows: int) -> None:
    """Refuse a matrix that is not a Gram matrix with `rows` rows per example.

    Raises:
        SpecError: The matrix is not square and finite, or its size is no multiple of `rows`.
    """
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or len(gram) == 0 or rows < 1 or len(gram) % rows:
        finding = f"has shape {list(gram.shape)}, with {rows} rows per example"
        raise SpecError(finding, where="gram", allowed="a square matrix with all rows of every example")
    if not gram.isfinite().all():
        raise SpecError("is not finite", where="gram")
