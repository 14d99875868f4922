"""Bilinear layers as quadratic forms: modes, their removal, and the side effects of a removal (2410.08417, 2602.05635).

A bilinear layer f(x, y) = P [(W x) * (V y)] is a tensor B[o, i, j] = sum_h P[o, h] W[h, i] V[h, j]. Contracted with an
output direction g it is one matrix Q with g . f(x, y) = x' Q y. Its *modes* are the terms of

    Q = sum_k s_k u_k z_k'        singular value decomposition, for two inputs
    Q = sum_k s_k e_k e_k'        eigenvectors of the symmetric part, if x and y are the same input

Single hidden units are not modes: W and V can be rotated without a change of Q. So an edit goes through the modes.
If two modes have the same strength, only the plane that they span is defined; remove whole planes.

The equations of surgery and collateral are derived in the notes of this project; the papers' own were not readable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.base.errors import SpecError
from expunge.numerics._cp import Decomposition, factored

__all__ = [
    "Decomposition",
    "Modes",
    "interaction",
    "modes",
    "predict_collateral",
    "projector",
    "refactor",
    "remove_modes",
    "remove_subspace",
    "require_separate",
    "symmetric",
]

GAP = 1e-3
"""Smallest distance of a removed mode's strength to the other modes' strengths, relative to the largest strength."""


@dataclass(frozen=True, eq=False)
class Modes:
    """The modes of one matrix, in falling order of their absolute strength."""

    strengths: Tensor
    """`[k]`; signed for a symmetric form."""
    left: Tensor
    """Unit columns u_k, `[d_x, k]`."""
    right: Tensor
    """Unit columns z_k, `[d_y, k]`; equal to `left` for a symmetric form."""

    def gap(self, chosen: Sequence[int]) -> float:
        """Smallest distance of a chosen strength to one that stays, relative to the largest; infinite if none stays."""
        inside = torch.zeros(len(self.strengths), dtype=torch.bool)
        inside[list(chosen)] = True
        if inside.all() or not inside.any():
            return math.inf
        distances = (self.strengths[inside][:, None] - self.strengths[~inside]).abs()
        return float(distances.min() / self.strengths.abs().max().clamp_min(torch.finfo(distances.dtype).tiny))

    def matrix(self, chosen: Sequence[int] | None = None) -> Tensor:
        """The sum of the chosen modes, `[d_x, d_y]`; by default of all."""
        k = slice(None) if chosen is None else list(chosen)
        return (self.left[:, k] * self.strengths[k]) @ self.right[:, k].T


def interaction(left: Tensor, right: Tensor, out: Tensor, direction: Tensor | None = None) -> Tensor:
    """The tensor of a bilinear layer, or its matrix in one output direction.

    Args:
        left: W, `[h, d_x]`.
        right: V, `[h, d_y]`.
        out: P, `[o, h]`.
        direction: g, `[o]`; by default the whole tensor is returned.

    Returns:
        Q `[d_x, d_y]`, or B `[o, d_x, d_y]`.
    """
    if direction is not None:
        return (left.T * (direction @ out)) @ right
    return torch.einsum("oh,hi,hj->oij", out, left, right)


def symmetric(form: Tensor) -> Tensor:
    """The symmetric part, which is all that one shared input sees."""
    return (form + form.transpose(-1, -2)) / 2


def modes(form: Tensor, *, shared: bool) -> Modes:
    """Decompose a matrix into its modes.

    Args:
        form: Q, `[d_x, d_y]`.
        shared: Whether both sides have the same input. Then only the symmetric part acts, and the modes are its
            eigenvectors; otherwise they are pairs of singular vectors.
    """
    if not shared:
        u, s, vh = torch.linalg.svd(form, full_matrices=False)
        return Modes(s, u, vh.T)
    values, vectors = torch.linalg.eigh(symmetric(form))
    order = values.abs().argsort(descending=True)
    return Modes(values[order], vectors[:, order], vectors[:, order])


def remove_modes(form: Tensor, chosen: Sequence[int], *, shared: bool, gap: float = GAP) -> tuple[Tensor, Modes]:
    """Remove modes of a matrix: the smallest change after which u_k' Q' z_k = 0 for each of them.

    Args:
        form: Q, `[d_x, d_y]`.
        chosen: Indices of the modes, from the strongest (0).
        shared: As in `modes`.
        gap: Smallest allowed spectral gap, see `Modes.gap`.

    Returns:
        The matrix without these modes, and all modes of `form`.

    Raises:
        SpecError: There is no such mode, or another mode has nearly the same strength.
    """
    decomposed = modes(form, shared=shared)
    require_separate(decomposed, chosen, gap)
    return (symmetric(form) if shared else form) - decomposed.matrix(chosen), decomposed


def require_separate(decomposed: Modes, chosen: Sequence[int], gap: float) -> None:
    """Refuse modes that do not exist, or that the spectrum does not separate from the modes that stay.

    Raises:
        SpecError: The finding names the mode, and the one that it cannot be separated from.
    """
    count = len(decomposed.strengths)
    wrong = [k for k in chosen if not 0 <= k < count]
    if wrong or not chosen or len(set(chosen)) != len(chosen):
        finding = f"found mode {wrong[0]}" if wrong else f"found {list(chosen)}"
        raise SpecError(finding, where="modes", allowed=f"different whole numbers from 0 to {count - 1}")
    if decomposed.gap(chosen) < gap:
        strengths = decomposed.strengths
        staying = [k for k in range(count) if k not in set(chosen)]
        k, j = min(((k, j) for k in chosen for j in staying), key=lambda p: abs(strengths[p[0]] - strengths[p[1]]))
        raise SpecError(
            f"mode {k} has strength {strengths[k]:.4g}, and mode {j}, which stays, {strengths[j]:.4g}: the relative "
            f"spectral gap is {decomposed.gap(chosen):.1e}, so the two are defined only as a plane",
            where="modes",
            allowed=f"modes with a gap of at least {gap:g}",
            remedy=f"remove mode {j} as well, or lower the required gap",
        )


def projector(basis: Tensor, moments: Tensor | None = None) -> Tensor:
    """The projector onto a subspace that changes retained inputs least.

    Args:
        basis: Columns that span the subspace, `[d, r]`.
        moments: Second moments S of the retained inputs, `[d, d]`, invertible. Without them the projector is
            orthogonal; with them it is S^-1 U (U' S^-1 U)^-1 U'.

    Raises:
        SpecError: The columns are more than the width, or not independent.
    """
    width, rank = basis.shape
    if rank > width or int(torch.linalg.matrix_rank(basis)) < rank:
        finding = f"{rank} columns of width {width} are not independent"
        raise SpecError(finding, where="basis", allowed=f"at most {width} independent columns")
    scaled = basis if moments is None else torch.linalg.solve(moments, basis)
    projected: Tensor = scaled @ torch.linalg.solve(basis.T @ scaled, basis.T)
    return projected


def remove_subspace(form: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Remove the interaction of two subspaces: Q' = Q - P_x Q P_y'.

    Args:
        form: Q `[d_x, d_y]`, or a stack of matrices.
        left: Projector of the left input, `[d_x, d_x]`.
        right: Projector of the right input, `[d_y, d_y]`.
    """
    return form - left @ form @ right.T


def predict_collateral(change: Tensor, left: Tensor, right: Tensor) -> float:
    """Mean squared change of the output over independent inputs: sum over outputs of |S_x^1/2 dQ S_y^1/2|^2.

    It is exact for a grid of pairs (every x with every y), or if x and y are independent. For one shared input, take
    the change of P as `change`, the identity as `left`, and second moments of the products (W x) * (V x) as `right`.

    Args:
        change: dQ, `[d_x, d_y]` or `[o, d_x, d_y]`.
        left: Second moments S_x of the retained inputs, `[d_x, d_x]`.
        right: Second moments S_y, `[d_y, d_y]`.
    """
    return float((left @ change @ right * change).sum())


def refactor(form: Tensor, hidden: int, *, shared: bool) -> Decomposition:
    """Factors that depend on the form alone, so that they do not hold what an edit cancelled.

    Args:
        form: Q `[d_x, d_y]`, or B `[o, d_x, d_y]`.
        hidden: Largest number of hidden units.
        shared: As in `modes`.

    Returns:
        The factors with their relative residual. It is at rounding level if the units suffice; otherwise the strongest
        units are kept and improved by alternating least squares.
    """
    stack = form if form.ndim == 3 else form[None]
    return factored(symmetric(stack) if shared else stack, hidden, shared=shared)
