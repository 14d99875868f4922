"""Choose demonstrations for queries: greedily by the bound of the risk, by cosine, or for diversity.

`greedy` minimises tr(F_Q (r I + sum_i F(x_i))^-1), the trace bound of concept regression (2509.20882) up to a factor,
one demonstration at a time. With W = S^-1 A' for the embeddings A `[M, K]` of a chosen question, the Woodbury identity

    (S + A' A)^-1 = S^-1 - W (I + A W)^-1 W'

updates the small products `A_i S^-1 A_j'` of all candidates instead of inverting a matrix for each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from expunge.base.errors import SpecError

RIDGE = 1e-3
"""Default of r for each query: without it, no single demonstration would have a finite bound."""


def greedy(candidates: Tensor, queries: Tensor, count: int, *, ridge: float = RIDGE) -> list[int]:
    """Candidates in the order in which they lower the bound of the queries' mean risk most.

    Args:
        candidates: Normalised embeddings of questions with known answers, `[n, M, K]`.
        queries: Normalised embeddings of the questions to answer, `[q, M, K]`; their answers are not needed.
        count: Number of candidates to choose.
        ridge: r, above 0.

    Returns:
        Rows of `candidates`, `count` of them; the first k are the choice of k.

    Raises:
        SpecError: There are fewer candidates than `count`, `count` is below 1, there is no query, or shapes do not
            match.
    """
    rows, wanted = candidates.double(), queries.double()
    _check(rows, wanted, count)
    if not ridge > 0:
        raise SpecError(f"found {ridge!r}", where="ridge", allowed="a number above 0")
    identity = torch.eye(rows.shape[1], dtype=rows.dtype)
    # `inner` is A_i S^-1, and `toward` is A_i S^-1 L with F_Q = L L'.
    inner = rows / ridge
    toward = inner @ _root(wanted)
    free = torch.ones(len(rows), dtype=torch.bool)
    own = inner @ rows.transpose(1, 2)
    order: list[int] = []
    while len(order) < count:
        gains = torch.linalg.solve(identity + own, toward).mul_(toward).sum((1, 2))
        best = int(torch.where(free, gains, -torch.inf).argmax())
        order.append(best)
        free[best] = False
        if len(order) < count:
            middle = torch.linalg.inv(identity + own[best])
            across = inner @ rows[best].T
            inner = inner - across @ (middle @ inner[best])
            toward = toward - across @ (middle @ toward[best])
            own = own - across @ middle @ across.transpose(1, 2)
    return order


def greedy_by_inverse(candidates: Tensor, queries: Tensor, count: int, *, ridge: float = RIDGE) -> list[int]:
    """The same as `greedy`, with one inverse for each candidate and step: an oracle, and slow."""
    rows = candidates.double()
    grams = rows.transpose(1, 2) @ rows
    root = _root(queries.double())
    total = ridge * torch.eye(rows.shape[2], dtype=rows.dtype)
    order: list[int] = []
    for _ in range(count):
        bounds = (torch.linalg.inv(total + grams) @ root).mul(root).sum((1, 2))
        bounds[order] = torch.inf
        order.append(int(bounds.argmin()))
        total = total + grams[order[-1]]
    return order


def nearest(candidates: Tensor, queries: Tensor, count: int) -> list[int]:
    """The candidates whose embeddings have the largest mean cosine with the queries', in that order.

    Args:
        candidates: `[n, M, K]`.
        queries: `[q, M, K]`.
        count: Number of candidates to choose.

    Raises:
        SpecError: As in `greedy`.
    """
    _check(candidates, queries, count)
    ours, theirs = (torch.nn.functional.normalize(rows.double().flatten(1), dim=1) for rows in (candidates, queries))
    chosen: list[int] = (ours @ theirs.T).mean(1).argsort(descending=True, stable=True)[:count].tolist()
    return chosen


def diverse(candidates: Tensor, count: int) -> list[int]:
    """k-centre: each next candidate is the one that is farthest from those chosen, from the one nearest the mean on.

    Args:
        candidates: `[n, M, K]`.
        count: Number of candidates to choose.

    Raises:
        SpecError: There are fewer candidates than `count`, or `count` is below 1.
    """
    _check(candidates, candidates, count)
    rows = candidates.double().flatten(1)
    order = [int((rows - rows.mean(0)).square().sum(1).argmin())]
    distance = (rows - rows[order[0]]).square().sum(1)
    while len(order) < count:
        distance[order] = -1
        order.append(int(distance.argmax()))
        distance = torch.minimum(distance, (rows - rows[order[-1]]).square().sum(1))
    return order


def _root(queries: Tensor) -> Tensor:
    """L with L L' = the mean of F over the queries, with at most K columns."""
    flat = queries.flatten(0, 1) / len(queries) ** 0.5
    # Of many rows the triangular factor has the same product.
    root: Tensor = flat if len(flat) <= flat.shape[1] else torch.linalg.qr(flat, mode="r").R
    return root.T


def _check(candidates: Tensor, queries: Tensor, count: int) -> None:
    for name, rows in (("candidates", candidates), ("queries", queries)):
        if rows.ndim != 3 or not len(rows) or rows.shape[1:] != candidates.shape[1:]:
            finding = f"found shape {list(rows.shape)}"
            raise SpecError(finding, where=name, allowed="at least one question, [n, M, K], with the same M and K")
        if not bool(rows.isfinite().all()):
            raise SpecError("a value is not finite", where=name, allowed="finite numbers")
    if not 1 <= count <= len(candidates):
        raise SpecError(
            f"found {count}",
            where="count",
            allowed=f"1 to {len(candidates)}, the number of candidates",
            remedy="give more candidates, or ask for fewer demonstrations",
        )
