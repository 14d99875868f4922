"""In-context learning of real data from frozen embeddings: accuracy by number, dimension and choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from expunge.numerics.demonstrations import diverse, greedy, nearest
from expunge.numerics.label_regression import Whitening, fit_labels

CHOICES = ("random", "greedy", "cosine", "diverse")


class Labelled(NamedTuple):
    """Embeddings `[n, d]` and labels `[n]`: a pool without labels, candidates of demonstrations, and queries."""

    name: str
    pool: Tensor
    candidates: Tensor
    labels: Tensor
    queries: Tensor
    right: Tensor
    options: int


def split(name: str, rows: Tensor, labels: Tensor, sizes: tuple[int, int, int], generator: torch.Generator) -> Labelled:
    """Embeddings in random order, cut into pool, candidates and queries of these sizes."""
    order = torch.randperm(len(rows), generator=generator)
    return in_order(name, rows[order], labels[order], sizes)


def in_order(name: str, rows: Tensor, labels: Tensor, sizes: tuple[int, int, int]) -> Labelled:
    """Embeddings cut into pool, candidates and queries of these sizes, in their order."""
    order = torch.arange(len(rows))
    pool, candidates, queries = order[: sum(sizes)].split(list(sizes))
    options = int(labels.max()) + 1
    return Labelled(name, rows[pool], rows[candidates], labels[candidates], rows[queries], labels[queries], options)


def accuracy(data: Labelled, dimension: int, count: int, draws: int, ridge: float, generator: torch.Generator) -> float:
    """Accuracy after `count` random demonstrations, with the first `dimension` directions, over `draws` of them."""
    whitening = Whitening.fit(data.pool, dimension)
    candidates, queries = whitening(data.candidates), whitening(data.queries)
    shares = []
    for _ in range(draws):
        ids = torch.randperm(len(candidates), generator=generator)[:count]
        concept = fit_labels(candidates[ids], data.labels[ids], data.options, ridge=ridge)
        shares.append(float((concept.predict(queries).argmax(1) == data.right).double().mean()))
    return float(np.mean(shares))


def by_choice(data: Labelled, dimension: int, count: int, ridge: float, generator: torch.Generator) -> dict[str, float]:
    """Accuracy by way of choosing `count` demonstrations for each query, from unlabelled candidates."""
    whitening = Whitening.fit(data.pool, dimension)
    candidates, queries = whitening(data.candidates), whitening(data.queries)
    spread = diverse(candidates[:, None], count)
    ways: Mapping[str, Callable[[Tensor], Sequence[int]]] = {
        "random": lambda _: torch.randperm(len(candidates), generator=generator)[:count].tolist(),
        "greedy": lambda query: greedy(candidates[:, None], query[None, None], count, ridge=1.0),
        "cosine": lambda query: nearest(candidates[:, None], query[None, None], count),
        "diverse": lambda _: spread,
    }
    shares = {}
    for name in CHOICES:
        hits = []
        for query, right in zip(queries, data.right, strict=True):
            ids = torch.tensor(ways[name](query))
            concept = fit_labels(candidates[ids], data.labels[ids], data.options, ridge=ridge)
            hits.append(float(int(concept.predict(query[None]).argmax()) == int(right)))
        shares[name] = float(np.mean(hits))
    return shares


def share_of_knowledge(data: Labelled, dimension: int, ridge: float) -> float:
    """1 minus the share of residual energy, of queries by the concept of all candidates."""
    whitening = Whitening.fit(data.pool, dimension)
    candidates, queries = whitening(data.candidates), whitening(data.queries)
    concept = fit_labels(candidates, data.labels, data.options, ridge=ridge)
    true = torch.nn.functional.one_hot(data.right, data.options).double()
    error = (concept.predict(queries) - true).square().sum()
    return 1 - float(error / (true - 1 / data.options).square().sum())


def predicted_risk(
    data: Labelled, dimension: int, count: int, draws: int, ridge: float, generator: torch.Generator
) -> float:
    """Mean risk of the queries after `count` random demonstrations, as theory predicts it.

    It is the squared bias of the demonstrations, with the concept of all candidates in the place of the true one; the
    variance with probabilities of 1 / M, (M - 1) / M phi' A G A phi / n for A = (G + ridge)^-1; and the residual.
    """
    whitening = Whitening.fit(data.pool, dimension)
    candidates, queries = whitening(data.candidates), whitening(data.queries)
    best = fit_labels(candidates, data.labels, data.options, ridge=ridge).weights
    risks = []
    for _ in range(draws):
        rows = candidates[torch.randperm(len(candidates), generator=generator)[:count]]
        gram = rows.T @ rows / count
        inverse = torch.linalg.inv(gram + ridge * torch.eye(len(gram), dtype=gram.dtype))
        bias = queries @ (best - inverse @ gram @ best)
        spread = (queries @ (inverse @ gram @ inverse) * queries).sum(1)
        risks.append(float((bias.square().sum(1) + (1 - 1 / data.options) * spread / count).mean()))
    residual = (1 - 1 / data.options) * (1 - share_of_knowledge(data, dimension, ridge))
    return float(np.mean(risks)) + residual
