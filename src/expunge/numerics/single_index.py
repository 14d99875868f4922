"""Estimate the one direction of the inputs that targets depend on, and the Hermite coefficients along it.

For Gaussian inputs of covariance S, least squares gives b with S^(1/2) b = c_1 u (Stein 1981; Brillinger 1982),
independent of the other coefficients. The examples are split into two halves A and B. Their errors are independent, so
<b_A, S b_B> has the mean c_1^2. One half gives the direction, the other half the coefficients along it: over B the
mean of y h_k(z), with z = <b_A, x> divided by its standard deviation, is c_k s_A^k. The cosine s_A of b_A to the true
direction is divided out. With the same examples for both, c_1 would be too large, and the others too small.

Intervals come from a bootstrap within each half, with least squares to first order. Inputs are assumed to be Gaussian;
their deviation from that along the direction, and a possible second direction, are measured as well.

Cost: about n d^2 and d^3 once, 4 n d in each replicate; no gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.base.errors import SpecError
from expunge.numerics.hermite import polynomials


@dataclass(frozen=True)
class SingleIndex:
    """The estimates; `replicates` are the same estimates from resampled examples."""

    direction: Tensor
    """`[d]` in the space of the inputs, scaled so that centred inputs times it have variance 1."""
    teacher: Tensor
    """c_0 to c_degree `[degree + 1]`, c_1 positive; NaN from degree 1 on if <b_A, S b_B> is not positive."""
    replicates: Tensor
    """`teacher` of each replicate, `[replicates, degree + 1]`."""
    squared: Tensor
    """<b_A, S b_B> of each replicate, `[replicates]`; often negative if c_1 is too small to detect."""
    overlap: float
    """Estimated cosine of a half's direction to the true one; NaN if <b_A, S b_B> is not positive."""
    skewness: float
    """Mean of h_1 h_2 along the direction; 0 for Gaussian inputs."""
    excess: float
    """Mean of h_2^2 - 1 along the direction; 0 for Gaussian inputs."""
    second: float
    """Sum of squared coefficients of second degree off the direction, about 0 if there is only one direction."""
    second_error: float
    """Standard error of `second` if there is only one direction."""
    examples: int
    """Number of examples."""


def single_index(
    inputs: Tensor, targets: Tensor, generator: torch.Generator, *, degree: int = 4, replicates: int = 200
) -> SingleIndex:
    """Estimate direction and coefficients.

    Args:
        inputs: `[n, ...]`, one row per example, more examples than entries; flattened.
        targets: One number per example, `[n]`.
        generator: Draws the halves and the bootstrap, on the CPU.
        degree: Highest degree, 2 or more.
        replicates: Bootstrap replicates.

    Raises:
        SpecError: Shapes disagree, a value is not finite, there are too few examples, an input is a linear function of
            others, or all targets are equal.
    """
    if degree < 2 or replicates < 20:
        finding = f"degree = {degree}, replicates = {replicates}"
        raise SpecError(finding, where="single_index", allowed="degree 2 and 20 replicates or more")
    x, y = _checked(inputs, targets)
    order = torch.randperm(len(y), generator=generator)
    covariance = x.T @ x / len(x)
    halves = [_Half(x[part], y[part], degree) for part in order.tensor_split(2)]
    teacher, _, overlap = _estimate(
        halves, [half.slope for half in halves], [torch.ones(half.size).double() for half in halves]
    )
    drawn, products = [], []
    for _ in range(replicates):
        counts = [_counts(half.size, generator) for half in halves]
        slopes = [half.resampled(count) for half, count in zip(halves, counts, strict=True)]
        again, product, _ = _estimate(halves, slopes, counts)
        drawn.append(again)
        products.append(product)
    mean = (halves[0].slope + halves[1].slope) / 2
    direction = mean / (mean @ covariance @ mean).sqrt()
    along = polynomials(x @ direction, 2)
    second, error = _off_direction(halves, covariance, direction)
    return SingleIndex(
        direction,
        teacher,
        torch.stack(drawn),
        torch.tensor(products, dtype=torch.float64),
        overlap,
        float((along[:, 1] * along[:, 2]).mean()),
        float(along[:, 2].square().mean() - 1),
        second,
        error,
        len(y),
    )


class _Half:
    """Half of the examples, with the least squares solution on them."""

    def __init__(self, x: Tensor, y: Tensor, degree: int) -> None:
        self.x, self.y, self.degree, self.size = x - x.mean(0), y, degree, len(y)
        self.covariance = self.x.T @ self.x / self.size
        self.factor = torch.linalg.cholesky(self.covariance)
        self.slope = self._solved(y @ self.x / self.size)
        self.residual = y - y.mean() - self.x @ self.slope

    def resampled(self, counts: Tensor) -> Tensor:
        """Least squares on resampled examples to first order, `[d]`."""
        return self.slope + self._solved((counts * self.residual) @ self.x / self.size)

    def along(self, slope: Tensor, counts: Tensor) -> Tensor:
        """Means of y h_k along a slope, `[degree + 1]`."""
        z = self.x @ slope
        return (counts * self.y) @ polynomials(z / z.square().mean().sqrt(), self.degree) / counts.sum()

    def _solved(self, moment: Tensor) -> Tensor:
        return torch.cholesky_solve(moment[:, None], self.factor).squeeze(1)


def _checked(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    x, y = inputs.detach().flatten(1).double().cpu(), targets.detach().double().cpu()
    if y.shape != (len(x),):
        finding = f"{list(y.shape)} for {len(x)} inputs"
        raise SpecError(finding, where="targets", allowed="one number per example", remedy="for classes, -1 and 1")
    if not (x.isfinite().all() and y.isfinite().all()):
        raise SpecError("a value is not finite", where="inputs or targets")
    if len(y) < max(4 * x.shape[1], 20):
        finding = f"{len(y)} examples of {x.shape[1]} entries"
        remedy = "project on principal components"
        raise SpecError(finding, where="inputs", allowed="20 examples, and 4 for each entry", remedy=remedy)
    if float(y.std()) == 0:
        raise SpecError("are all the same", where="targets")
    x = x - x.mean(0)
    values = torch.linalg.eigvalsh(x.T @ x)
    if values[0] <= 1e-12 * values[-1]:
        remedy = "leave out constant and repeated entries, or project on principal components"
        raise SpecError("an entry is constant, or a linear function of others", where="inputs", remedy=remedy)
    return x, y


def _counts(size: int, generator: torch.Generator) -> Tensor:
    """How often each example is drawn, `[size]`."""
    return torch.bincount(torch.randint(0, size, (size,), generator=generator), minlength=size).double()


def _estimate(halves: list[_Half], slopes: list[Tensor], counts: list[Tensor]) -> tuple[Tensor, float, float]:
    """The coefficients `[degree + 1]`, an unbiased c_1^2, and the mean cosine of the slopes to the true direction."""
    covariance = (halves[0].covariance + halves[1].covariance) / 2
    squared = float(slopes[0] @ covariance @ slopes[1])
    coefficients, overlap = torch.full((2, halves[0].degree + 1), math.nan, dtype=torch.float64), math.nan
    if squared > 0:
        cosines = [math.sqrt(squared) / float((b @ covariance @ b).sqrt()) for b in slopes]
        overlap = sum(cosines) / 2
        for fitted, measured in ((0, 1), (1, 0)):
            powers = torch.tensor(cosines[fitted], dtype=torch.float64) ** torch.arange(coefficients.shape[1])
            coefficients[fitted] = halves[measured].along(slopes[fitted], counts[measured]) / powers
    total = sum(float((w * half.y).sum()) for w, half in zip(counts, halves, strict=True))
    coefficients[:, 0] = total / sum(half.size for half in halves)
    return coefficients.mean(0), squared, overlap


def _off_direction(halves: list[_Half], covariance: Tensor, direction: Tensor) -> tuple[float, float]:
    """Squared norm of the matrix E[y h_2] without its entry along the direction, and its error if that norm is 0."""
    inverse = torch.linalg.inv(torch.linalg.cholesky(covariance))
    axis = direction @ covariance @ inverse.T
    residuals, noises = [], []
    for half in halves:
        x, y = half.x @ inverse.T, half.y - half.y.mean()
        matrix = x.T @ (y[:, None] * x) / half.size / math.sqrt(2)
        residuals.append(matrix - (axis @ matrix @ axis) * torch.outer(axis, axis))
        sizes = y.square() * (x.square().sum(1).square() - (x @ axis) ** 4) / 2
        noises.append(float(sizes.mean()) / half.size)
    # The product of two independent matrices of noise in D dimensions has this standard deviation.
    dimensions = max(len(axis) * (len(axis) + 1) / 2 - 1, 1)
    return float((residuals[0] * residuals[1]).sum()), math.sqrt(noises[0] * noises[1] / dimensions)
