"""What codes do to vectors: variance that is kept, retrieval by attention, and deviations beside their bound."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from expunge.blocks.codebook import CodebookLayer
from expunge.numerics.communication import discrete_bound

WIDTH, DRAWN = 16, 2000
SIZES = (30, 100, 300, 1000)
REPEATS = 20


def codebook(rows: Tensor, heads: int, codes: int, steps: int = 60) -> CodebookLayer:
    """A codebook that has learned these rows `[n, WIDTH]` by its own loss."""
    layer = CodebookLayer(rows.shape[1], heads, codes, kind="ema").train()
    for _ in range(steps):
        layer(rows)
    return layer.eval()


def retained(heads: int, codes: int, generator: torch.Generator) -> float:
    """Share of the variance of fresh Gaussian vectors that is kept."""
    layer = codebook(torch.randn(DRAWN, WIDTH, generator=generator), heads, codes)
    rows = torch.randn(DRAWN, WIDTH, generator=generator)
    with torch.no_grad():
        return 1 - float((layer(rows) - rows).square().sum() / rows.square().sum())


def retrieval(heads: int, codes: int, generator: torch.Generator, noise: float = 1.0) -> tuple[float, float]:
    """How often attention finds one fixed vector among 100 fresh ones: without codes, and with codes."""
    rows = torch.randn(DRAWN, WIDTH, generator=generator)
    layer, fixed = codebook(rows, heads, codes), rows[0]
    query = fixed + noise * torch.randn(DRAWN // 4, WIDTH, generator=generator)
    keys = torch.randn(DRAWN // 4, 101, WIDTH, generator=generator)
    keys[:, 0] = fixed
    hits = []
    with torch.no_grad():
        for asked, offered in ((query, keys), (layer(query), layer(keys))):
            scores = (asked.unsqueeze(1) * offered).sum(-1)
            # Codes of a distractor may equal those of the fixed vector; such a draw is shared among the equal ones.
            best = scores >= scores.max(1, keepdim=True).values - 1e-6
            hits.append(float((best[:, 0].float() / best.sum(1)).mean()))
    return hits[0], hits[1]


def deviations(cells: Tensor, heads: int, codes: int, generator: torch.Generator) -> tuple[list[float], float]:
    """Deviation of the frequency of a message, as a share of theorem 1's bound, and its slope against the sample.

    Args:
        cells: The message of each of many draws, `[n, heads]`; they stand for the distribution.
        heads: Codes per message.
        codes: Size of the codebook.
        generator: Draws the samples.
    """
    _, place = cells.unique(dim=0, return_inverse=True)
    p = torch.bincount(place).double() / len(place)
    largest = []
    for n in SIZES:
        drawn = place[torch.randint(len(place), (REPEATS, n), generator=generator)]
        shares = torch.stack([torch.bincount(row, minlength=len(p)) / n for row in drawn])
        largest.append(float((shares - p).abs().max(1).values.mean()))
    x = torch.tensor([math.log(n) for n in SIZES], dtype=torch.float64)
    y = torch.tensor(largest, dtype=torch.float64).log()
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    return [d / discrete_bound(n, heads, codes) for d, n in zip(largest, SIZES, strict=True)], slope
