"""The spectral density of an operator, by stochastic Lanczos quadrature (Golub and Meurant 1994; Ubaru et al. 2017).

For a random unit vector v, consider the distribution with weight <v, u_i>^2 on eigenvalue lambda_i. Its mean over v is
the spectrum. Lanczos from v gives its Gauss quadrature: nodes theta_i, the eigenvalues of T, and weights s_1i^2, exact
for polynomials up to degree 2 steps - 1. The remaining error comes from the small number of probes, and is reported.

Cost: probes * steps products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.base.errors import SpecError
from expunge.numerics._krylov import Krylov, Operator


@dataclass(frozen=True)
class Density:
    """Nodes and weights of each probe; a row of weights sums to 1."""

    nodes: Tensor
    """`[probes, steps]`, double precision, on the CPU."""
    weights: Tensor
    """`[probes, steps]`, not negative."""
    size: int
    """Rows of the operator, `p`."""

    def moment(self, power: int) -> tuple[float, float]:
        """Mean of lambda^power over the spectrum, that is trace(A^power) / p, and its standard error over probes."""
        mean, error = _over_probes((self.weights * self.nodes**power).sum(1, keepdim=True))
        return float(mean), float(error)

    def smoothed(self, grid: Tensor, width: float) -> tuple[Tensor, Tensor]:
        """The density with a Gaussian for each eigenvalue, and its standard error over probes.

        Args:
            grid: Points to evaluate at, `[g]`.
            width: Standard deviation of the Gaussian, in units of the eigenvalues.

        Returns:
            Both `[g]`, per unit of the eigenvalues.
        """
        distance = (grid.double()[None, None] - self.nodes[:, :, None]) / width
        bells = torch.exp(-distance.square() / 2) / (width * math.sqrt(2 * math.pi))
        return _over_probes((self.weights[:, :, None] * bells).sum(1))


def density(
    operator: Operator, like: Tensor, generator: torch.Generator, *, probes: int = 8, steps: int = 40
) -> Density:
    """The spectral density.

    Args:
        operator: Maps a flat vector `[p]` to its product `[p]`; symmetric.
        like: A vector `[p]`; only its size, dtype and device are read.
        generator: Draws the probes, on the CPU.
        probes: Random vectors; at least 2, because the error is computed over them.
        steps: Products per probe.

    Raises:
        SpecError: Fewer than 2 probes or 1 step, or a product has the wrong shape.
        RunError: A product is not finite, or the operator is not symmetric.
    """
    if probes < 2 or steps < 1:
        raise SpecError(f"probes = {probes}, steps = {steps}", where="density", allowed="2 probes and 1 step or more")
    size, results = like.numel(), []
    for _ in range(probes):
        # Gaussian, not random signs: with a diagonal operator all vectors of signs give the same weights.
        start = torch.randn(size, generator=generator, dtype=torch.float64).to(like)
        krylov = Krylov(operator, start, min(steps, size), generator)
        for _ in range(min(steps, size)):
            krylov.step()
        values, columns = torch.linalg.eigh(krylov.tridiagonal())
        results.append(torch.stack([values, columns[0].square()]))
    both = torch.stack(results)
    return Density(both[:, 0], both[:, 1], size)


def _over_probes(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.mean(0), values.std(0) / len(values) ** 0.5
