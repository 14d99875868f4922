"""Simulate random linear updates and compare with theory, on planes of step size, mix, batch size and coherence.

A chain has diverged if its squared distance exceeds 1,000 times that of its start within the steps. A cell is stable if
at least half of its chains did not diverge (the protocol of Dexter et al.'s code). The simulation uses no theory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from expunge.numerics.coherence import descent_bounds
from expunge.numerics.linearised import Draw, Update, of_gram
from expunge.numerics.stability import mean_limit, mean_radius, mean_square_radius

FAR = 1000.0
"""Growth of the squared distance that counts as divergence."""
RETAIN, FORGET, SIZE = 50, 10, 8
"""Retain examples, forget examples, and dimensions: fewer than examples, because otherwise there is no boundary."""
DEXTER = 100
"""Examples in the construction of Dexter et al."""
DEXTER_STEP = 0.5
DEXTER_BATCHES = (1, 2, 3, 5, 7, 10, 14, 20, 28, 40, 49)
DEXTER_COHERENCES = (1, 2, 3, 5, 8, 12, 18, 25, 35, 50)


@dataclass(frozen=True)
class Cell:
    """One cell of a plane, with its measured and its predicted stability."""

    plane: str
    across: float
    up: float
    stable: bool
    exact: bool
    """Whether the mean square is stable, by the exact operator."""
    mean: bool
    """Whether the mean is stable."""


def gradients(count: int, coherence: float, generator: torch.Generator) -> Tensor:
    """Vectors of rank-one curvatures `[count, SIZE]`: a weighted common direction plus a direction of their own."""
    own = torch.randn(count, SIZE, generator=generator, dtype=torch.float64) / math.sqrt(SIZE)
    common = torch.zeros(SIZE, dtype=torch.float64)
    common[0] = 1.0
    return math.sqrt(coherence) * common + math.sqrt(1 - coherence) * own


def planes(steps: int, chains: int, across: int, up: int, seed: int) -> Iterator[Cell]:
    """Both planes: step size against mix with small batches, and batch against coherence at a fixed step and mix."""
    generator = torch.Generator().manual_seed(seed)
    for ascent_weight in np.linspace(0.0, 0.3, up):
        vectors = gradients(RETAIN + FORGET, 0.0, generator)
        limit = _limit(vectors)
        for factor in np.geomspace(0.05, 3.0, across):
            update = Update(factor * limit, float(ascent_weight), Draw(RETAIN, 3), Draw(FORGET, 2))
            yield _cell("step and mix", float(factor), float(ascent_weight), vectors, update, steps, chains, generator)
    batches = np.unique(np.geomspace(1, RETAIN, across).round().astype(int))
    for coherence in np.linspace(0.0, 0.95, up):
        vectors = gradients(RETAIN + FORGET, float(coherence), generator)
        step = 0.6 * _limit(vectors)
        for batch in batches:
            update = Update(step, 0.05, Draw(RETAIN, int(batch)), Draw(FORGET, 2))
            yield _cell(
                "batch and coherence", float(batch), float(coherence), vectors, update, steps, chains, generator
            )


def _limit(vectors: Tensor) -> float:
    """Largest step size of plain descent on the retain set at which the mean is stable."""
    curvatures = of_gram(vectors @ vectors.T, RETAIN)
    return mean_limit(curvatures, Update(1.0, 0.0, Draw(RETAIN, RETAIN), Draw(FORGET, FORGET)))


def _cell(
    plane: str,
    across: float,
    up: float,
    vectors: Tensor,
    update: Update,
    steps: int,
    chains: int,
    generator: torch.Generator,
) -> Cell:
    curvatures = of_gram(vectors @ vectors.T, RETAIN)
    diverged = chains_diverge(vectors, RETAIN, update, steps, chains, generator)
    return Cell(
        plane,
        across,
        up,
        stable=float(diverged.double().mean()) <= 0.5,
        exact=mean_square_radius(curvatures, update, tolerance=1e-4).value <= 1,
        mean=mean_radius(curvatures, update) <= 1,
    )


def chains_diverge(
    vectors: Tensor, retained: int, update: Update, steps: int, chains: int, generator: torch.Generator
) -> Tensor:
    """Whether each chain, from a normal start, diverges within the steps, `[chains]`.

    Args:
        vectors: g_i `[m, p]` with H_i = g_i g_i^T, the retain examples first.
        retained: Number of retain examples.
        update: Step size, mix and batch sizes; batches are drawn without replacement.
        steps: Largest number of steps.
        chains: Number of chains.
        generator: Draws starts and batches.
    """
    w = torch.randn(chains, vectors.shape[1], generator=generator, dtype=torch.float64)
    start, far = w.square().sum(1), torch.zeros(chains, dtype=torch.bool)
    sides = (
        (retained, update.retain.batch, 1 - update.ascent_weight),
        (len(vectors) - retained, update.forget.batch, -update.ascent_weight),
    )
    for _ in range(steps):
        weights = torch.cat([u / b * _chosen(chains, n, b, generator) for n, b, u in sides], 1)
        w = w - update.step * (weights * (w @ vectors.T)) @ vectors
        far |= ~(w.square().sum(1) <= FAR * start)
        if far.all():
            break
        # Reset diverged chains, so that they do not overflow.
        w = torch.where(far[:, None], torch.zeros_like(w), w)
    return far


def _chosen(chains: int, size: int, batch: int, generator: torch.Generator) -> Tensor:
    """A batch per chain as zeros and ones, `[chains, size]`."""
    if batch == size:
        return torch.ones(chains, size, dtype=torch.float64)
    order = torch.rand(chains, size, generator=generator).topk(batch, dim=1).indices
    return torch.zeros(chains, size, dtype=torch.float64).scatter_(1, order, 1.0)


def dexter_map(steps: int, chains: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The construction of Dexter et al.: sigma examples share an axis, every other has its own; Bernoulli batches.

    Returns:
        Per coherence and batch size: whether at least half of the chains are stable, whether the paper's bound predicts
        that the mean square diverges, and whether its converse predicts stability; `[coherences, batches]`.
    """
    generator, shape = torch.Generator().manual_seed(seed), (len(DEXTER_COHERENCES), len(DEXTER_BATCHES))
    stays, leaves, may_stay = (torch.zeros(shape, dtype=torch.bool) for _ in range(3))
    for row, sigma in enumerate(DEXTER_COHERENCES):
        for column, batch in enumerate(DEXTER_BATCHES):
            stays[row, column] = _construction_stays(sigma, batch, steps, chains, generator)
            # lambda_1(H) is 2 by construction.
            bounds = descent_bounds(2.0, sigma, Draw(DEXTER, batch, bernoulli=True))
            leaves[row, column] = bounds.leaves_above < DEXTER_STEP
            may_stay[row, column] = bounds.may_stay_below > DEXTER_STEP
    return stays, leaves, may_stay


def _construction_stays(sigma: int, batch: int, steps: int, chains: int, generator: torch.Generator) -> bool:
    own, share = DEXTER - sigma, batch / DEXTER
    curvature = 2 * DEXTER / sigma
    # Axis 0 is shared; its factor in a step depends on how many of its examples are in the batch.
    w = torch.ones(chains, 1 + own, dtype=torch.float64)
    start, far = w.square().sum(1), torch.zeros(chains, dtype=torch.bool)
    for _ in range(steps):
        seen = (torch.rand(chains, sigma + own, generator=generator) < share).double()
        counts = torch.cat([seen[:, :sigma].sum(1, keepdim=True), seen[:, sigma:]], 1)
        w = w * (1 - DEXTER_STEP * curvature / batch * counts)
        far |= ~(w.square().sum(1) <= FAR * start)
        if far.all():
            break
        w = torch.where(far[:, None], torch.zeros_like(w), w)
    return float(far.double().mean()) <= 0.5
