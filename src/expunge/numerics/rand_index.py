"""The adjusted Rand index (Hubert and Arabie, 1985): how far two divisions of the same points agree, beyond chance."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def adjusted_rand_index(first: Tensor, second: Tensor, kept: Tensor | None = None) -> Tensor:
    """(agreement - expected) / (largest - expected) over pairs of points; 1 for the same division, 0 at chance.

    Args:
        first: Labels of many sets of points, `[b, p]` int64, from 0.
        second: Labels of the same points.
        kept: Which points count, `[b, p]` bool; by default all.

    Returns:
        `[b]` in float64; 1 where both divisions are one cluster, or no point counts.
    """
    counted = torch.ones_like(first, dtype=torch.bool) if kept is None else kept
    a, b = (F.one_hot(labels).double() * counted.unsqueeze(2) for labels in (first, second))
    pairs = _pairs(a.mT @ b).sum((1, 2))
    rows, columns = _pairs(a.sum(1)).sum(1), _pairs(b.sum(1)).sum(1)
    # Of less than two points there is no pair; then all terms are 0.
    expected = rows * columns / _pairs(counted.sum(1).double()).clamp(min=1)
    largest = (rows + columns) / 2
    alike = largest == expected
    index: Tensor = (pairs - expected) / torch.where(alike, 1.0, largest - expected)
    return torch.where(alike, 1.0, index)


def _pairs(counts: Tensor) -> Tensor:
    return counts * (counts - 1) / 2
