"""Every batch that can be drawn in one step, with its chance: expectations over them are exact and know no formula."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from expunge.numerics.linearised import Draw, Update


def weights(draw: Draw) -> Iterator[tuple[float, Tensor]]:
    """Chance and weight of each example in the batch's mean."""
    if draw.bernoulli:
        share = draw.batch / draw.size
        for bits in itertools.product((0.0, 1.0), repeat=draw.size):
            inside = torch.tensor(bits).double()
            yield float((inside * share + (1 - inside) * (1 - share)).prod()), inside / draw.batch
        return
    chosen = list(itertools.combinations(range(draw.size), draw.batch))
    for places in chosen:
        inside = torch.zeros(draw.size).double()
        inside[list(places)] = 1 / draw.batch
        yield 1 / len(chosen), inside


def steps(hessians: Tensor, update: Update) -> Iterator[tuple[float, Tensor]]:
    """Chance and J, or with momentum the companion matrix of (w_k, w_k-1)."""
    unit = torch.eye(hessians.shape[1]).double()
    for (p, retain), (q, forget) in itertools.product(weights(update.retain), weights(update.forget)):
        signed = torch.cat([(1 - update.ascent_weight) * retain, -update.ascent_weight * forget])
        step = (1 + update.momentum) * unit - update.step * torch.einsum("i,iab->ab", signed, hessians)
        if update.momentum:
            step = torch.cat([torch.cat([step, -update.momentum * unit], 1), torch.cat([unit, 0 * unit], 1)])
        yield p * q, step


def operator(hessians: Tensor, update: Update) -> Tensor:
    """E[J (x) J], the dense matrix of M -> E[J M J^T] on flattened M."""
    return sum(chance * torch.kron(step, step) for chance, step in steps(hessians, update))  # type: ignore[return-value]


def radius(matrix: Tensor) -> float:
    return float(torch.linalg.eigvals(matrix).abs().max())


def positive(count: int, size: int, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Factors `[m, p, k]` and H_i = G_i G_i^T."""
    factors = torch.randn(count, size, rank, generator=generator).double()
    return factors, factors @ factors.mT


def gram_of(factors: Tensor) -> Tensor:
    """Inner products of all columns, those of one example next to each other."""
    columns = factors.mT.flatten(0, 1)
    return columns @ columns.T
