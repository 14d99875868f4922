"""Eigenvalues at both ends of a symmetric operator's spectrum, with error bounds, by Lanczos.

After `k` products the operator's projection T on an orthonormal basis Q has eigenpairs (theta_i, s_i). The residual of
the Ritz vector Q s_i has the norm |beta_k s_ki|, its last entry times the coupling to what is outside of the basis
(Parlett 1980, chapter 13), so that some eigenvalue lies within it of theta_i. Where that eigenvalue stands alone, the
value is much closer than that: its error is of second order in the residual.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.base.errors import SpecError
from expunge.numerics._krylov import Krylov, Operator


@dataclass(frozen=True)
class Eigenpairs:
    """Approximate eigenvalues: the largest ones falling, then the smallest ones rising."""

    values: Tensor
    """`[m]`, double precision, on the CPU."""
    vectors: Tensor
    """Orthonormal columns `[p, m]`, in the operator's dtype and on its device."""
    bounds: Tensor
    """Each value is at most this far from some eigenvalue, `[m]`: the residual, and 8 eps k |theta| for rounding."""
    products: int
    """Products that were taken."""
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
    """The `top` largest and the `bottom` smallest eigenvalues; those at one end share the products of the other.

    A multiple eigenvalue counts once, unless there are fewer distinct ones than are asked for: from one start, only one
    of its vectors is seen. A bound says that there is an eigenvalue nearby, not that none lies beyond; one whose vector
    is almost orthogonal to the start comes late.

    Args:
        operator: From a flat vector `[p]` to its product `[p]`.
        like: A vector `[p]` of which only size, dtype and device are read.
        generator: Draws the start, on the CPU.
        top: Number of values at the upper end.
        bottom: Number of values at the lower end.
        tolerance: Largest bound, relative to the largest absolute eigenvalue found.
        limit: Most products; also the number of vectors in memory.
        start: A vector `[p]`, not zero, to begin with in the place of a random one. Near the vectors that are looked
            for it saves products; what it is orthogonal to is not found.

    Returns:
        The pairs; fewer where the operator has fewer rows.

    Raises:
        SpecError: No values are asked for, or more than the limit can give, or a product has the wrong shape.
        RunError: A product is not finite, or the operator is not symmetric.
    """
    wanted = min(top + bottom, like.numel())
    if min(top, bottom, tolerance) < 0 or top + bottom == 0 or limit < wanted:
        found = f"top = {top}, bottom = {bottom}, tolerance = {tolerance}, limit = {limit}"
        raise SpecError(found, where="lanczos", allowed="none negative, and at least one value but no more than limit")
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
        # A basis of the whole space leaves no residual: it has converged at any tolerance.
        if converged or krylov.products >= limit:
            break
    rounding = 8 * krylov.epsilon * krylov.products * scale
    vectors = krylov.basis.T @ columns[:, at].to(krylov.basis)
    return Eigenpairs(values[at], vectors, bounds + rounding, krylov.products, converged)


def _ends(count: int, top: int, bottom: int) -> list[int]:
    """Places among so many rising values; none twice."""
    highest = list(range(count - 1, max(count - 1 - top, -1), -1))
    return highest + list(range(min(bottom, count - len(highest))))
