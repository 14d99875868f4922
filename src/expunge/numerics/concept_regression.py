"""Concept regression: an in-context learner in closed form, with bounds of its risk (CB-ICL, 2509.20882).

A question x has M options y, and a frozen model embeds each pair as f(x, y) in R^K, centred over the options, with 1 /
sqrt(M) as the last coordinate. The *concept* is a vector a with P(y|x) = a . f(x, y). From n demonstrations, questions
with their right answers, it is estimated as

    F(x) = sum_y f(x, y) f(x, y)'    F_n = mean_i F(x_i)    a = F_n^+ mean_i f(x_i, y_i)

This is the minimum-norm least-squares fit of the one-hot answers. The last coordinate of a is 1 / sqrt(M) whatever the
demonstrations are, because all other coordinates sum to zero over the options. So predictions sum to 1 over the
options, but single ones may be negative.

If P is linear in f (*complete*) and F_n is invertible (*sufficient*), the expected squared error over the options of a
query is at most tr(F(x) F_n^-1) / n, and at most min(M, K) / n times the largest eigenvalue of F(x) F_n^-1. The paper's
constants were not readable: the bounds were derived anew, and are tested.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from expunge.base.errors import SpecError

ZERO = 1e-10
"""A direction whose singular value is below this, relative to the largest, counts as absent."""


@dataclass(frozen=True, eq=False)
class Normalisation:
    """What turns raw embeddings of options into those of the model: projection, centring, scale, and the bias.

    Args:
        basis: Orthonormal columns, `[d, K - 1]`.
        scale: Root mean square of each projected coordinate over the pool, `[K - 1]`.
    """

    basis: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, pool: Tensor, dimension: int | None = None) -> Normalisation:
        """Fit it to unlabelled questions: their principal directions after centring over the options.

        Args:
            pool: Raw embeddings, `[n, M, d]`. Leave out the queries that will be scored.
            dimension: Number of coordinates K - 1; by default, and at most, all directions in which the pool varies.

        Raises:
            SpecError: The embeddings have a wrong shape or are not finite, or options never differ.
        """
        rows = centred(_checked(pool)).flatten(0, 1)
        _, strengths, directions = torch.linalg.svd(rows, full_matrices=False)
        # Relative to the embeddings themselves: options that differ by rounding alone do not differ.
        floor = ZERO * max(float(torch.linalg.matrix_norm(pool.double().flatten(0, 1))), torch.finfo(rows.dtype).tiny)
        rank = int((strengths > floor).sum())
        if not rank:
            raise SpecError(
                "the embeddings of a question's options never differ (zero variance)",
                where="embeddings",
                allowed="embeddings that depend on the option",
                remedy="embed question and option together, or choose another layer",
            )
        kept = rank if dimension is None else min(dimension, rank)
        return cls(directions[:kept].T.contiguous(), strengths[:kept] / math.sqrt(len(rows)))

    def __call__(self, raw: Tensor) -> Tensor:
        """Normalised embeddings `[n, M, K]` in float64 of raw ones `[n, M, d]`.

        Raises:
            SpecError: The shape is wrong, or a value is not finite.
        """
        rows = centred(_checked(raw) @ self.basis) / self.scale
        options = rows.shape[1]
        return torch.cat([rows, rows.new_full((*rows.shape[:2], 1), 1 / math.sqrt(options))], -1)


def centred(embeddings: Tensor) -> Tensor:
    """Embeddings `[n, M, d]` minus their mean over the options."""
    return embeddings - embeddings.mean(1, keepdim=True)


@dataclass(frozen=True, eq=False)
class Concept:
    """An estimated concept.

    Args:
        weights: a, `[K]`.
        gram: F_n, `[K, K]`.
        demonstrations: n.
    """

    weights: Tensor
    gram: Tensor
    demonstrations: int

    def predict(self, embeddings: Tensor) -> Tensor:
        """Predicted probabilities `[..., M]` of options `[..., M, K]`; they sum to 1, and may be negative."""
        return embeddings @ self.weights


def fit_concept(embeddings: Tensor, answers: Tensor, *, ridge: float = 0.0) -> Concept:
    """Estimate a concept from demonstrations.

    Args:
        embeddings: Normalised embeddings, `[n, M, K]`: centred over the options but for the constant last coordinate.
        answers: The right option of each demonstration, `[n]`, from 0.
        ridge: Penalty added to the diagonal of F_n, but for the last coordinate.

    Returns:
        The concept; without a penalty the one of smallest norm.

    Raises:
        SpecError: There is no demonstration, shapes do not match, a value is not finite, an answer is not among the
            options, or the penalty is negative.
    """
    rows, labels = _demonstrations(embeddings, answers)
    check_ridge(ridge)
    count, options, width = rows.shape
    design = rows.flatten(0, 1)
    right = torch.nn.functional.one_hot(labels, options).to(rows).flatten()
    weights = rows.new_empty(width)
    weights[:-1] = least_squares(design[:, :-1], right, count * ridge)
    # The normal equations decouple it; stated here because rounding would not.
    weights[-1] = 1 / math.sqrt(options)
    return Concept(weights, design.T @ design / count, count)


def least_squares(design: Tensor, right: Tensor, penalty: float) -> Tensor:
    """The minimum of |right - design w|^2 + penalty |w|^2, of smallest norm, for one or several right sides."""
    left, strengths, directions = torch.linalg.svd(design, full_matrices=False)
    if not len(strengths):
        return design.new_zeros(design.shape[1])
    kept = strengths > ZERO * strengths[0]
    shrunk = torch.where(kept, strengths / (strengths.square() + penalty), 0.0)
    weights: Tensor = (directions.T * shrunk) @ (left.T @ right)
    return weights


class Coverage(NamedTuple):
    """How well demonstrations cover queries: bounds of the risk, one a query, `[q]`.

    If F_n is not invertible, both are taken on the directions that demonstrations have; `outside` is then positive.
    """

    trace: Tensor
    """tr(F(x) F_n^+) / n."""
    similarity: Tensor
    """Largest eigenvalue of F(x) F_n^+: the paper's similarity; at least 1, and small if the query is well covered."""
    spectral: Tensor
    """min(M, K) / n times `similarity`: never below `trace`."""
    outside: Tensor
    """Share of the trace of F(x) in directions that no demonstration has; 0 for sufficient demonstrations."""


def coverage(concept: Concept, queries: Tensor, *, ridge: float = 0.0) -> Coverage:
    """Bounds of the risk of queries, from embeddings alone.

    Args:
        concept: The estimate.
        queries: Normalised embeddings, `[q, M, K]`.
        ridge: Added to the diagonal of F_n, which makes it invertible.

    Raises:
        SpecError: A value is not finite, or the shape does not match.
    """
    rows = _checked(queries)
    values, vectors = torch.linalg.eigh(concept.gram)
    present = values > ZERO * values.max()
    values = values + ridge
    if ridge:
        present = torch.ones_like(present)
    whitened = rows @ (vectors[:, present] / values[present].sqrt())
    energy = rows.square().sum((1, 2))
    outside = (rows @ vectors[:, ~present]).square().sum((1, 2)) / energy.clamp_min(torch.finfo(rows.dtype).tiny)
    trace = whitened.square().sum((1, 2)) / concept.demonstrations
    # The eigenvalues of F(x) F_n^+ that are not zero are those of the small matrix [M, M].
    similarity = torch.linalg.eigvalsh(whitened @ whitened.transpose(1, 2))[:, -1]
    factor = min(rows.shape[1:]) / concept.demonstrations
    return Coverage(trace, similarity, factor * similarity, outside)


def risk(predicted: Tensor, true: Tensor) -> Tensor:
    """Squared error over the options, `[q]`, of predictions `[q, M]` against true probabilities `[q, M]`."""
    return (predicted - true).square().sum(-1)


def knowledge_share(embeddings: Tensor, answers: Tensor, *, ridge: float = 0.0) -> float:
    """The knowledge that an embedding lets a linear concept use: 1 minus the share of residual energy.

    The residual is that of one-hot answers, in excess of 1 / M, on questions that the concept was not fitted on: each
    half predicts the other. At most 1; 0 or less if the embedding says nothing of the answers.

    Args:
        embeddings: Normalised embeddings, `[n, M, K]`, of at least two questions.
        answers: Right options, `[n]`.
        ridge: As in `fit_concept`.

    Raises:
        SpecError: As in `fit_concept`, or there is one question only.
    """
    rows, labels = _demonstrations(embeddings, answers)
    if len(rows) < 2:
        raise SpecError("found one question", where="embeddings", allowed="at least two")
    true = torch.nn.functional.one_hot(labels, rows.shape[1]).to(rows)
    halves = [torch.arange(start, len(rows), 2) for start in (0, 1)]
    residual = sum(
        float(risk(fit_concept(rows[a], labels[a], ridge=ridge).predict(rows[b]), true[b]).sum())
        for a, b in (halves, halves[::-1])
    )
    return 1 - residual / float((true - 1 / rows.shape[1]).square().sum())


def _demonstrations(embeddings: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    rows = _checked(embeddings)
    count, options, _ = rows.shape
    if not count:
        raise SpecError("there is no demonstration", where="embeddings", allowed="at least one")
    check_answers(answers, count, options)
    return rows, answers.long()


def check_answers(answers: Tensor, count: int, options: int) -> None:
    """Refuse right options that are no whole numbers `[count]` from 0 to `options` - 1.

    Raises:
        SpecError: They are not.
    """
    if answers.shape != (count,) or answers.is_floating_point() or answers.dtype == torch.bool:
        finding = f"found {answers.dtype} of shape {list(answers.shape)} for {count} demonstrations"
        raise SpecError(finding, where="answers", allowed=f"whole numbers [{count}]")
    foreign = answers[(answers < 0) | (answers >= options)]
    if len(foreign):
        finding = f"answer {int(foreign[0])} is not among the {options} options"
        raise SpecError(finding, where="answers", allowed=f"0 to {options - 1}")


def check_ridge(ridge: float) -> None:
    """Refuse a negative penalty.

    Raises:
        SpecError: It is negative, or no number.
    """
    if not (math.isfinite(ridge) and ridge >= 0):
        raise SpecError(f"found {ridge!r}", where="ridge", allowed="a number of at least 0")


def _checked(embeddings: Tensor) -> Tensor:
    """The embeddings in float64."""
    if embeddings.ndim != 3 or embeddings.shape[1] < 2 or not embeddings.shape[2] or embeddings.is_complex():
        finding = f"found {embeddings.dtype} of shape {list(embeddings.shape)}"
        raise SpecError(finding, where="embeddings", allowed="real numbers [n, M, K] with at least two options M")
    if not bool(embeddings.isfinite().all()):
        raise SpecError("a value is not finite", where="embeddings", allowed="finite numbers")
    return embeddings.double()
