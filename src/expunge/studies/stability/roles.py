"""The effect of each coherence on how fast a model leaves a minimum, all else equal: simulated growth of distance."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["low", "forget", "apart", "between"]
"""`low`: nothing is shared; `forget`: forget examples share a direction; `apart`: retain examples share another one
too; `between`: both share the same."""

RETAIN, FORGET, MIX = 30, 10, 0.3
SHARED = 0.6
"""Squared cosine of an example's curvature to a shared direction."""


def growth(kind: Kind, steps: int, seed: int) -> float:
    """Growth per step of the logarithm of the distance, over the second half of the steps, in full batches.

    All examples have curvature 1 and linearly independent gradients, so the distance grows at every step size. The step
    size is half of the largest that is stable for descent alone.
    """
    generator = torch.Generator().manual_seed(seed)
    vectors = _vectors(kind, generator)
    retain, forget = vectors[:RETAIN], vectors[RETAIN:]
    matrix = (1 - MIX) * retain.T @ retain / RETAIN - MIX * forget.T @ forget / FORGET
    step = 1 / float(torch.linalg.eigvalsh(retain.T @ retain / RETAIN)[-1])
    w = torch.randn(vectors.shape[1], generator=generator, dtype=torch.float64)
    # The part outside of the span of all gradients never moves, so the distance excludes it.
    span = torch.linalg.svd(vectors, full_matrices=False).Vh
    w = span.T @ (span @ w)
    logs, total = [], 0.0
    for _ in range(steps):
        w = w - step * matrix @ w
        size = float(w.norm())
        total, w = total + math.log(size), w / size
        logs.append(total)
    half = steps // 2
    return (logs[-1] - logs[half - 1]) / (steps - half)


def _vectors(kind: Kind, generator: torch.Generator) -> Tensor:
    """Unit vectors `[RETAIN + FORGET, p]`, with two orthogonal directions to share."""
    own = torch.randn(RETAIN + FORGET, 2 * (RETAIN + FORGET), generator=generator, dtype=torch.float64)
    own[:, :2] = 0
    own = own / own.norm(dim=1, keepdim=True)
    shared = torch.zeros_like(own)
    if kind != "low":
        shared[RETAIN:, 0] = 1
    if kind in ("apart", "between"):
        shared[:RETAIN, int(kind == "apart")] = 1
    weight = shared.norm(dim=1, keepdim=True) * SHARED
    vectors: Tensor = weight.sqrt() * shared + (1 - weight).sqrt() * own
    return vectors
