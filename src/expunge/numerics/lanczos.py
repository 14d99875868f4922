"""Eigenvalues at both ends of a symmetric operator's spectrum, with error bounds, by Lanczos.

After `k` products the operator's projection T on an orthonormal basis Q has eigenpairs (theta_i, s_i). The residual of
the Ritz vector Q s_i has the norm |beta_k s_ki|, the last entry of s_i times the coupling to the outside of the basis
(Parlett 1980, chapter 13). Some eigenvalue is within this distance of theta_i. If that eigenvalue is isolated, the
value is much closer: its error is of second order in the residual.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.base.errors import SpecError
from expunge.numerics._krylov import Krylov, Operator


@dataclass(frozen=True)
class Eigenpairs:
    """Approximate eigenvalues: the largest ones in falling order, then the smallest ones in rising order."""

    values: Tensor
    """`[m]`, double precision, on the CPU."""
    vectors: Tensor
    """Orthonormal columns `[p, m]`, in the operator's dtype and on its device."""
    bounds: Tensor
    """Some eigenvalue is within this distance of each value, `[m]`: the residual, plus 8 eps k |theta| for rounding."""
    products: int
    """Number of products."""
    converged: bool
    """Whether all bounds, without rounding, are within the tolerance."""


def lanczos(
    operator: Operator,
    like: Tensor,
    generator: torch.Generator,
    *,
    top: int = 1,
    bottom: int = 0,
    tolerance: float = 1e-3,
    limit: int = 100,
    start: Tensor | None = None,
) -> Eigenpairs:
    """The `top` largest and the `bottom` smallest eigenvalues, from the same products.

    A multiple eigenvalue counts once, unless there are fewer distinct ones than `top + bottom`: from one start, Lanczos
    reaches only one of its vectors. A bound guarantees an eigenvalue nearby, not that none is beyond it; an eigenvalue
    whose vector is almost orthogonal to the start appears late.

    Args:
        operator: Maps a flat vector `[p]` to its product `[p]`.
        like: A vector `[p]`; only its size, dtype and device are read.
        generator: Draws the start, on the CPU.
        top: Number of values at the upper end.
        bottom: Number of values at the lower end.
        tolerance: Largest bound, relative to the largest absolute eigenvalue found.
        limit: Largest number of products; also the number of vectors in memory.
        start: A first vector `[p]`, not zero; random by default. A start near the wanted vectors saves products;
            vectors that are orthogonal to it are not found.

    Returns:
        The pairs; fewer if the operator has fewer rows.

    Raises:
        SpecError: `top + bottom` is 0 or exceeds the limit, or a product has the wrong shape.
        RunError: A product is not finite, or the operator is not symmetric.
    """
    wanted = min(top + bottom, like.numel())
    if min(top, bottom, tolerance) < 0 or top + bottom == 0 or limit < wanted:
        finding = f"top = {top}, bottom = {bottom}, tolerance = {tolerance}, limit = {limit}"
        allowed = "none negative, and at least one value but no more than limit"
        raise SpecError(finding, where="lanczos", allowed=allowed)
    if start is None:
        start = torch.randn(like.numel(), generator=generator, dtype=torch.float64)
    krylov = Krylov(operator, start.to(like), limit, generator)
    while True:
        krylov.step()
        values, columns = torch.linalg.eigh(krylov.tridiagonal())
        at = _ends(len(values), top, bottom)
        bounds = krylov.betas[-1] * columns[-1, at].abs()
        scale = float(values.abs().max())
        converged = len(at) == wanted and bool((bounds <= tolerance * scale).all())
        # A basis of the whole space has no residual: it has converged at any tolerance.
        if converged or krylov.products >= limit:
            break
    rounding = 8 * krylov.epsilon * krylov.products * scale
    vectors = krylov.basis.T @ columns[:, at].to(krylov.basis)
    return Eigenpairs(values[at], vectors, bounds + rounding, krylov.products, converged)


def _ends(count: int, top: int, bottom: int) -> list[int]:
    """Indices of the wanted values among `count` rising ones, each once."""
    highest = list(range(count - 1, max(count - 1 - top, -1), -1))
    return highest + list(range(min(bottom, count - len(highest))))
