"""Concept regression with labels as options: few-shot classification from frozen features, in closed form.

The embedding of a label is e_y (x) phi(x), the features at the label's place (2509.20882). Then concept regression is
one least-squares fit for each label on the same features, and the large embedding `[n, M, M d]` is not needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.base.errors import SpecError
from expunge.numerics.concept_regression import ZERO, check_answers, check_ridge, least_squares


def label_embeddings(features: Tensor, labels: int) -> Tensor:
    """The embedding of a classifier's question: the features stand at the label's place, f(x, y) = e_y (x) phi(x).

    Args:
        features: `[n, d]`.
        labels: Number of options, M.

    Returns:
        `[n, M, M d]`.
    """
    unit = torch.eye(labels, dtype=features.dtype, device=features.device)
    return torch.einsum("yz,nd->nyzd", unit, features).flatten(2)


@dataclass(frozen=True, eq=False)
class Whitening:
    """Features without their mean, on their principal directions, each with variance 1; and a constant 1 behind them.

    So a direction that a model scales down, or mixes with others, counts as much as before.

    Args:
        centre: Mean over the pool, `[d]`.
        basis: Orthonormal columns, `[d, k]`.
        scale: Standard deviation of each projected coordinate over the pool, `[k]`.
    """

    centre: Tensor
    basis: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, pool: Tensor, dimension: int | None = None) -> Whitening:
        """Fit it to unlabelled features.

        Args:
            pool: Features of examples that will not be scored, `[n, d]`.
            dimension: Number of directions k, the strongest first; by default, and at most, all in which they vary.

        Raises:
            SpecError: A value is not finite, or all examples have the same features.
        """
        rows = _checked(pool)
        centre = rows.mean(0)
        _, strengths, directions = torch.linalg.svd(rows - centre, full_matrices=False)
        floor = ZERO * max(float(torch.linalg.matrix_norm(rows)), torch.finfo(rows.dtype).tiny)
        rank = int((strengths > floor).sum())
        if not rank:
            raise SpecError(
                "all examples have the same features (zero variance)",
                where="features",
                allowed="features that depend on the example",
                remedy="choose another layer",
            )
        kept = rank if dimension is None else min(dimension, rank)
        return cls(centre, directions[:kept].T.contiguous(), strengths[:kept] / math.sqrt(len(rows)))

    def __call__(self, features: Tensor) -> Tensor:
        """Whitened features `[n, k + 1]` in float64 of features `[n, d]`."""
        rows = (_checked(features) - self.centre) @ self.basis / self.scale
        return torch.cat([rows, rows.new_ones(len(rows), 1)], 1)


@dataclass(frozen=True, eq=False)
class LabelConcept:
    """An estimated concept: one column of weights for each label, `[d, M]`."""

    weights: Tensor

    def predict(self, features: Tensor) -> Tensor:
        """Predicted probabilities `[n, M]`; they sum to 1, and may be negative."""
        return features @ self.weights + 1 / self.weights.shape[1]


def fit_labels(features: Tensor, answers: Tensor, labels: int, *, ridge: float = 0.0) -> LabelConcept:
    """What `fit_concept` estimates from `label_embeddings`, centred over the options and unscaled.

    Args:
        features: Features of the demonstrations, `[n, d]`.
        answers: Their labels, `[n]`, from 0.
        labels: Number of labels, M.
        ridge: Penalty, as in `fit_concept`.

    Raises:
        SpecError: There is no demonstration, a value is not finite, a label is not among the options, or the penalty is
            negative.
    """
    rows = _checked(features)
    if not len(rows):
        raise SpecError("there is no demonstration", where="features", allowed="at least one")
    check_answers(answers, len(rows), labels)
    check_ridge(ridge)
    right = torch.nn.functional.one_hot(answers.long(), labels).to(rows) - 1 / labels
    return LabelConcept(least_squares(rows, right, len(rows) * ridge))


def _checked(features: Tensor) -> Tensor:
    if features.ndim != 2 or not features.shape[1] or features.is_complex():
        finding = f"found {features.dtype} of shape {list(features.shape)}"
        raise SpecError(finding, where="features", allowed="real numbers [n, d]")
    if not bool(features.isfinite().all()):
        raise SpecError("a value is not finite", where="features", allowed="finite numbers")
    return features.double()
