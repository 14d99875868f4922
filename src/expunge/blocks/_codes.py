"""Codes of vectors: which code is nearest, where codes start, and the loss that teaches them.

Tensors have one row of vectors per codebook, `[K, M, d]`, and one table of codes, `[K, L, d]`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ROUNDS = 10
"""Rounds of k-means."""


def scores(rows: Tensor, codes: Tensor, closed: Tensor | None = None) -> Tensor:
    """Half the negative squared distance up to a constant of the row, `[K, M, L]`: the nearest code has the largest.

    Args:
        rows: `[K, M, d]`.
        codes: `[K, L, d]`.
        closed: Codes that may not be chosen, `[K, L]` bool.
    """
    offsets = codes.square().sum(-1).mul(-0.5).unsqueeze(1)
    near = torch.baddbmm(offsets, rows, codes.transpose(1, 2))
    return near if closed is None else near.masked_fill(closed.unsqueeze(1), -torch.inf)


def looked_up(table: Tensor, index: Tensor) -> Tensor:
    """Rows `[K, M, d]` of a table `[K, L, d]` at an index `[K, M]`."""
    if len(table) == 1:
        return F.embedding(index, table[0])
    return table.gather(1, index.unsqueeze(-1).expand(-1, -1, table.shape[-1]))


def shares(index: Tensor, count: int) -> Tensor:
    """How often each code occurs, as a share of its codebook's rows, `[K, L]` of an index `[K, M]`."""
    counts = torch.stack([torch.bincount(own, minlength=count) for own in index])
    return counts / index.shape[1]


def k_means(rows: Tensor, count: int) -> Tensor:
    """Centres `[K, count, d]` of rows `[K, M, d]`, from random rows; a centre without rows stays where it is."""
    return torch.stack([_centres(own, count) for own in rows])


def _centres(rows: Tensor, count: int) -> Tensor:
    # Drawn on the CPU, so that all devices draw the same.
    centres = rows[torch.randperm(len(rows))[:count].to(rows.device)]
    for _ in range(ROUNDS):
        index = scores(rows[None], centres[None]).argmax(-1)[0]
        sums = torch.zeros_like(centres).index_add_(0, index, rows)
        sizes = torch.bincount(index, minlength=count).to(rows).unsqueeze(1)
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
    return centres


class Communicate(torch.autograd.Function):
    """Emits codes instead of vectors, with the gradients of DVNC's loss, section 2.1 of 2107.02367.

        L = L_task + (1 / G) [ |sg(s) - e|^2 + beta |s - sg(e)|^2 ]

    The gradient of the task goes straight through to the vectors s, and none of it reaches the codes e.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        rows: Tensor, codes: Tensor, emitted: Tensor, index: Tensor, learns: Tensor | None, teach: float, commit: float
    ) -> Tensor:
        """The emitted codes.

        Args:
            rows: The vectors, `[K, M, d]`.
            codes: The codebooks, `[K, L, d]`, for their gradient.
            emitted: What is emitted, `[K, M, d]`.
            index: The code of each vector, `[K, M]`.
            learns: Which vectors have the loss, `[K, M]`; all by default.
            teach: Weight of the codebook term for one vector.
            commit: Weight of the commitment term for one vector.
        """
        return emitted.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        rows, codes, emitted, index, learns, ctx.teach, ctx.commit = inputs
        ctx.shape = codes.shape
        if ctx.teach or ctx.commit:
            apart = rows - emitted
            ctx.save_for_backward(apart if learns is None else apart * learns.unsqueeze(-1), index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (above,) = gradients
        if not (ctx.teach or ctx.commit):
            return above, None, None, None, None, None, None
        apart, index = ctx.saved_tensors
        for_codes = None
        if ctx.needs_input_grad[1]:
            books, count, width = ctx.shape
            flat = (index + torch.arange(books, device=index.device).unsqueeze(1) * count).flatten()
            zero = torch.zeros(books * count, width, dtype=apart.dtype, device=apart.device)
            for_codes = zero.index_add(0, flat, apart.flatten(0, 1), alpha=-2 * ctx.teach).view(ctx.shape)
        return above.add(apart, alpha=2 * ctx.commit), for_codes, None, None, None, None, None
