"""Inner products of per-example gradients from their factors, by the cheaper of two exact ways.

    <g_i, g_j> = sum_st <r_is, r_jt> <c_is, c_jt>                      products: T^2 (o + i) for a pair of examples
               = <sum_s r_is c_is^T, sum_t r_jt c_jt^T>                gradients: o i for a pair, T o i for an example

The first is cheaper for linear layers, the second for convolutions over many positions. Both work in pieces with a
fixed limit on memory. A parameter that is used several times has several factors: its gradient is the sum over all of
them, which is the same sum over more `t`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from expunge.numerics.batches import parts
from expunge.numerics.factors import Factors

PIECE = 2**22
"""Largest number of entries of a temporary tensor."""

Uses = Sequence[Factors]
"""The factors of one parameter, one for each time it is used."""


def overlap(ours: Uses, theirs: Uses, shape: torch.Size) -> tuple[Tensor, bool]:
    """Inner products between two blocks of examples.

    Args:
        ours: Factors of `b` examples.
        theirs: Factors of `c` examples.
        shape: Shape of the parameter.

    Returns:
        The inner products `[b, c]`, and whether products were the cheaper way.
    """
    by_products = _cost_of_products(ours, theirs) <= _cost_of_gradients(ours, theirs, shape)
    if by_products:
        return _by_products(ours, theirs), True
    return _by_gradients(ours, theirs, shape), False


def _cost_of_products(ours: Uses, theirs: Uses) -> int:
    pairs = len(ours[0].rows) * len(theirs[0].rows)
    groups, inner = ours[0].columns.shape[1], ours[0].columns.shape[3]
    outer = max(1 if a.rows.ndim == 3 else a.rows.shape[3] for a in ours)
    return pairs * groups * _positions(ours) * _positions(theirs) * (outer + inner)


def _cost_of_gradients(ours: Uses, theirs: Uses, shape: torch.Size) -> int:
    examples = len(ours[0].rows) * _positions(ours) + len(theirs[0].rows) * _positions(theirs)
    return (examples + len(ours[0].rows) * len(theirs[0].rows)) * shape.numel()


def _positions(uses: Uses) -> int:
    return sum(use.columns.shape[2] for use in uses)


def _by_products(ours: Uses, theirs: Uses) -> Tensor:
    total = ours[0].columns.new_zeros(len(ours[0].rows), len(theirs[0].rows))
    for a in ours:
        for b in theirs:
            pair = a.columns.shape[1] * a.columns.shape[2] * b.columns.shape[2]
            side = max(1, math.isqrt(PIECE // pair))
            for left in parts(len(a.rows), side):
                for right in parts(len(b.rows), side):
                    total[left, right] += _product(a.part(left), b.part(right))
    return total


def _product(a: Factors, b: Factors) -> Tensor:
    inner = _flat(a.columns) @ _flat(b.columns).mT
    inner *= _row_products(a.rows, b.rows)
    shape = (-1, len(a.rows), a.columns.shape[2], len(b.rows), b.columns.shape[2])
    return inner.view(shape).sum((0, 2, 4))


def _row_products(a: Tensor, b: Tensor) -> Tensor:
    """<r_s, r_t> for all pairs, `[g, b s, c t]`; an index represents its indicator."""
    if a.ndim == 3 and b.ndim == 3:
        return a.reshape(1, -1, 1) == b.reshape(1, 1, -1)
    if a.ndim == 3:
        return _flat(b)[:, :, a.flatten()].mT
    if b.ndim == 3:
        return _flat(a)[:, :, b.flatten()]
    return _flat(a) @ _flat(b).mT


def _flat(tensor: Tensor) -> Tensor:
    """`[b, g, t, n]` as `[g, b t, n]`."""
    return tensor.transpose(0, 1).flatten(1, 2)


def _by_gradients(ours: Uses, theirs: Uses, shape: torch.Size) -> Tensor:
    total = ours[0].columns.new_zeros(len(ours[0].rows), len(theirs[0].rows))
    inner = ours[0].columns.shape[3]
    width = max(1, PIECE // (max(len(total), total.shape[1]) * (shape.numel() // inner)))
    for piece in parts(inner, width):
        total += gradients(ours, piece, shape) @ gradients(theirs, piece, shape).T
    return total


def gradients(uses: Uses, piece: slice, shape: torch.Size) -> Tensor:
    """Per-example gradients for some of the columns, flattened, `[b, n]`."""
    first, *rest = (use.gradients(shape, piece) for use in uses)
    return sum(rest, first)
