"""Factor a stack of matrices into hidden units of a bilinear layer; the result depends on the stack alone.

The units of each output come from its own decomposition. A shared input allows to pair a positive eigenvalue with a
negative one: a^2 ee' - b^2 ff' is the symmetric part of (a e + b f)(a e - b f)', which is one unit. If the layer has
fewer units than that, the strongest are kept and improved by alternating least squares.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SWEEPS, STEPS = 20, 8
NEGLIGIBLE = 1e-13
"""Strengths below this share of the largest are rounding."""
SETTLED = 1e-4
"""Alternating least squares stops when a sweep lowers the residual by less than this share of it."""


@dataclass(frozen=True, eq=False)
class Decomposition:
    """W `[h, d_x]`, V `[h, d_y]` and P `[o, h]`, and |B - their tensor| / |B|."""

    left: Tensor
    right: Tensor
    out: Tensor
    residual: float


def factored(stack: Tensor, hidden: int, *, shared: bool) -> Decomposition:
    """Factors of B `[o, d_x, d_y]` with exactly `hidden` units; unused ones are zero."""
    left, right, strengths, output = _units(stack, shared=shared)
    kept = strengths.argsort(descending=True, stable=True)[:hidden]
    exact = len(kept) == len(strengths)
    left, right, strengths, output = left[kept], right[kept], strengths[kept], output[kept]
    out = stack.new_zeros(len(stack), len(kept))
    out[output, torch.arange(len(kept))] = strengths
    if shared and not exact:
        left, right, out = _improved(stack, left, right, out)
    residual = _residual(stack, left, right, out, shared=shared)
    spare = hidden - len(kept)
    grown = [torch.cat([side, side.new_zeros(spare, side.shape[1])]) for side in (left, right)]
    return Decomposition(grown[0], grown[1], torch.cat([out, out.new_zeros(len(out), spare)], 1), residual)


def _units(stack: Tensor, *, shared: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit rows of both sides, strengths of the units, and the output of each."""
    parts = [_paired(form) if shared else _singular(form) for form in stack]
    largest = max((float(strengths.max()) for *_, strengths in parts if len(strengths)), default=0.0)
    kept = [strengths > NEGLIGIBLE * largest for *_, strengths in parts]
    left, right, strengths = (torch.cat([p[i][k] for p, k in zip(parts, kept, strict=True)]) for i in range(3))
    output = torch.cat([torch.full((int(k.sum()),), o) for o, k in enumerate(kept)])
    return left, right, strengths, output


def _singular(form: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u, s, vh = torch.linalg.svd(form, full_matrices=False)
    return u.T, vh, s


def _paired(form: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(form)
    rising = values.abs().sqrt() * vectors
    positive, negative = rising[:, values > 0].flip(1), rising[:, values < 0]
    count = max(positive.shape[1], negative.shape[1])
    a, b = (torch.cat([side, side.new_zeros(len(side), count - side.shape[1])], 1).T for side in (positive, negative))
    left, right = a + b, a - b
    strengths = left.norm(dim=1) * right.norm(dim=1)
    scale = strengths.clamp_min(torch.finfo(form.dtype).tiny).sqrt()[:, None]
    return left / scale, right / scale, strengths


def _improved(stack: Tensor, left: Tensor, right: Tensor, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    best = (left, right, out)
    lowest = _residual(stack, *best, shared=True)
    for _ in range(SWEEPS):
        left = _side(stack, left, right, out)
        right = _side(stack, right, left, out)
        gram = _gram(left, right)
        wanted = torch.einsum("hi,oij,hj->oh", left, stack, right)
        out = wanted @ torch.linalg.pinv(gram, hermitian=True)
        residual = _residual(stack, left, right, out, shared=True)
        if not residual < lowest:
            break
        settled = residual > (1 - SETTLED) * lowest
        best, lowest = (left, right, out), residual
        if settled:
            break
    return best


def _gram(left: Tensor, right: Tensor) -> Tensor:
    """Inner products of the units' symmetric matrices."""
    crossed = left @ right.T
    return ((left @ left.T) * (right @ right.T) + crossed * crossed.T) / 2


def _side(stack: Tensor, side: Tensor, other: Tensor, out: Tensor) -> Tensor:
    """One side's least squares, by conjugate gradients from its present value."""
    weights, gram = out.T @ out, other @ other.T

    def normal(rows: Tensor) -> Tensor:
        return ((weights * gram) @ rows + (weights * (other @ rows.T)) @ other) / 2

    wanted = torch.einsum("oh,oij,hj->hi", out, stack, other)
    rows, residual = side, wanted - normal(side)
    step, energy = residual, float((residual * residual).sum())
    for _ in range(STEPS):
        image = normal(step)
        curvature = float((step * image).sum())
        if curvature <= 0 or energy == 0:
            break
        rows = rows + energy / curvature * step
        residual = residual - energy / curvature * image
        before, energy = energy, float((residual * residual).sum())
        step = residual + energy / before * step
    return rows


def _residual(stack: Tensor, left: Tensor, right: Tensor, out: Tensor, *, shared: bool) -> float:
    whole = torch.einsum("oh,hi,hj->oij", out, left, right)
    whole = (whole + whole.transpose(1, 2)) / 2 if shared else whole
    size = float(torch.linalg.vector_norm(stack))
    return float(torch.linalg.vector_norm(stack - whole)) / size if size else 0.0
