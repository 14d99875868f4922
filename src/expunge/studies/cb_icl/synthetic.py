"""Questions whose probabilities are known: they satisfy every assumption of the theory, or break one of them.

A world is a pool of questions with M options and orthogonal coordinates over the pool, and a concept that is linear in
them. A learner that sees all coordinates is complete; one that sees only the first ones is incomplete, and the residual
is orthogonal to what it sees. Demonstrations are insufficient if n (M - 1) is below the number of coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from expunge.numerics.concept_regression import Normalisation, coverage, fit_concept, risk
from expunge.numerics.demonstrations import greedy

OPTIONS, POOL, QUERIES = 4, 3000, 200


class World(NamedTuple):
    """Embeddings `[n, M, K]`, and probabilities `[n, M]`."""

    embeddings: Tensor
    true: Tensor


def world(width: int, generator: torch.Generator) -> World:
    """A world with K = `width`. The concept is as strong as keeps all probabilities positive."""
    raw = 2 * torch.rand(POOL, OPTIONS, width - 1, generator=generator, dtype=torch.float64) - 1
    rows = Normalisation.fit(raw)(raw)
    concept = torch.randn(width - 1, generator=generator, dtype=torch.float64)
    signal = rows[..., :-1] @ concept
    return World(rows, 1 / OPTIONS + 0.95 / OPTIONS * signal / signal.abs().max())


def seen(whole: World, width: int) -> Tensor:
    """The embeddings of a learner with K = `width`: the first coordinates, and the bias."""
    return torch.cat([whole.embeddings[..., : width - 1], whole.embeddings[..., -1:]], -1)


class Risks(NamedTuple):
    """Means over draws of demonstrations and queries."""

    measured: float
    predicted: float
    """From the known probabilities: squared bias of the expected answer, and the trace of its covariance."""
    bound: float
    """The trace bound, which needs no probability; only for complete learners and sufficient demonstrations."""


def risks(whole: World, width: int, count: int, draws: int, generator: torch.Generator, ridge: float = 0.0) -> Risks:
    """The risk of a learner with K = `width` after `count` demonstrations.

    Args:
        whole: The world.
        width: K, at most that of the world.
        count: n.
        draws: Draws of demonstrations and answers.
        generator: Of all draws.
        ridge: Penalty of the estimate; the prediction is for none.
    """
    rows = seen(whole, width)
    queries, wanted = rows[:QUERIES], whole.true[:QUERIES]
    table = []
    for _ in range(draws):
        chosen = QUERIES + torch.randperm(POOL - QUERIES, generator=generator)[:count]
        shown, chances = rows[chosen], whole.true[chosen]
        answers = torch.multinomial(chances, 1, generator=generator)[:, 0]
        estimate = fit_concept(shown, answers, ridge=ridge)
        measured = risk(estimate.predict(queries), wanted).mean()
        table.append([float(measured), predicted_risk(shown, chances, queries, wanted)])
        table[-1].append(float(coverage(estimate, queries).trace.mean()))
    return Risks(*map(float, np.mean(table, axis=0)))


def predicted_risk(shown: Tensor, chances: Tensor, queries: Tensor, wanted: Tensor) -> float:
    """The expected risk over the answers of given demonstrations, from their true probabilities."""
    count = len(shown)
    inverse = torch.linalg.pinv(torch.einsum("nyk,nyl->kl", shown, shown) / count, rtol=1e-10, hermitian=True)
    expected = inverse @ torch.einsum("nyk,ny->k", shown, chances) / count
    means = torch.einsum("nyk,ny->nk", shown, chances)
    spread = torch.einsum("nyk,ny,nyl->kl", shown, chances, shown) - means.T @ means
    covariance = inverse @ spread @ inverse / count**2
    variance = torch.einsum("qyk,kl,qyl->q", queries, covariance, queries)
    return float((risk(queries @ expected, wanted) + variance).mean())


def residual(whole: World, width: int) -> float:
    """Energy of what a learner with K = `width` cannot express, a query: its risk after all demonstrations."""
    rows = seen(whole, width)
    estimate = torch.linalg.lstsq(rows.flatten(0, 1), whole.true.flatten()).solution
    return float(risk(rows @ estimate, whole.true).mean())


def chosen_and_random(whole: World, width: int, count: int, generator: torch.Generator) -> tuple[float, float]:
    """Predicted risk of ten queries, each with its own greedy choice of demonstrations, and with random ones."""
    rows = seen(whole, width)
    results = []
    for query in range(10):
        candidates = QUERIES + torch.randperm(POOL - QUERIES, generator=generator)[:200]
        target = slice(query, query + 1)
        order = greedy(rows[candidates], rows[target], count)
        sets = [candidates[order]] + [candidates[torch.randperm(200, generator=generator)[:count]] for _ in range(10)]
        own = [predicted_risk(rows[ids], whole.true[ids], rows[target], whole.true[target]) for ids in sets]
        results.append([own[0], float(np.mean(own[1:]))])
    first, others = np.mean(results, axis=0)
    return float(first), float(others)


def similarities(whole: World, width: int, count: int, sets: int, generator: torch.Generator) -> dict[str, list[float]]:
    """For random sets of demonstrations of one query each: risk, trace and largest eigenvalue."""
    rows = seen(whole, width)
    table: dict[str, list[float]] = {"risk": [], "trace": [], "lambda": []}
    for place in range(sets):
        query = slice(place % QUERIES, place % QUERIES + 1)
        ids = QUERIES + torch.randperm(POOL - QUERIES, generator=generator)[:count]
        bounds = coverage(fit_concept(rows[ids], torch.zeros(count, dtype=torch.int64)), rows[query])
        table["risk"].append(predicted_risk(rows[ids], whole.true[ids], rows[query], whole.true[query]))
        table["trace"].append(float(bounds.trace))
        table["lambda"].append(float(bounds.similarity))
    return table


def decades(values: Sequence[float]) -> list[float]:
    """Decimal logarithms."""
    return [math.log10(value) for value in values]
