"""A weight as a sum of components, each with a score; the components with most of the score's mass are kept.

    C = U^T W V,  W_edit = U (C o M) V^T

`hard`: M is 1 on the shortest prefix of components, sorted by score, whose scores sum to at least rho of the total, and
0 elsewhere. `soft`: M = s / (s + tau) for a score s, with the tau for which the kept scores sum to rho of the total.
C has no part in the choice, except for the scores of `saliency` and `svd`.

| rule | bases | score of component (i, j) |
| --- | --- | --- |
| `kfac` | eigenvectors of G and A | lambda_i mu_j (2510.24256) |
| `ekfac` | the same | the measured curvature E[(u_i^T g)^2 (v_j^T a)^2] |
| `saliency` | the same | lambda_i mu_j C_ij^2, twice what setting it to 0 costs at second order |
| `inputs_only` | eigenvectors of A only | mu_j: whole input directions are kept, as by a principal component analysis |
| `svd` | singular vectors of W | C_ii^2, without any data |
| `random_rotation` | random orthonormal ones | lambda_i mu_j: the spectrum of K-FAC in directions without meaning |
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from expunge.base.errors import SpecError
from expunge.numerics.eigenbasis import Eigenbasis

Rule = Literal["kfac", "ekfac", "saliency", "inputs_only", "svd", "random_rotation"]
Shrinkage = Literal["hard", "soft"]

_HALVINGS = 60


@dataclass(frozen=True)
class Components:
    """A weight `[d_out, d_in]` in two orthonormal bases, float64."""

    left: Tensor | None
    """U, `[d_out, m]`; `None` for the identity."""
    right: Tensor
    """V, `[d_in, k]`."""
    coefficients: Tensor
    """C, `[m, k]`."""
    scores: Tensor
    """`[m, k]`, or `[1, k]` where all components of a column have the same score and stay together."""

    def removed(self, factors: Tensor) -> Tensor:
        """What an edit takes out: U (C o (1 - M)) V^T, `[d_out, d_in]`.

        Args:
            factors: M, in the shape of the scores.
        """
        rest = (self.coefficients * (1 - factors)) @ self.right.T
        return rest if self.left is None else self.left @ rest


def components(
    rule: Rule, weight: Tensor, basis: Eigenbasis | None, measured: Tensor | None, generator: torch.Generator
) -> Components:
    """The components of a weight by a rule of the table above.

    Args:
        rule: The rule.
        weight: `[d_out, d_in]`.
        basis: The layer's eigenbasis; only `svd` needs none.
        measured: EK-FAC's eigenvalues `[d_out, d_in]`, for `ekfac`.
        generator: On the CPU, for `random_rotation`.

    Raises:
        SpecError: The rule needs what is missing.
    """
    wide = weight.double()
    if rule == "svd":
        left, values, right = torch.linalg.svd(wide, full_matrices=False)
        return Components(left, right.T, torch.diag(values), torch.diag(values.square()))
    if basis is None or (rule == "ekfac" and measured is None):
        what = "factors" if basis is None else "EK-FAC's eigenvalues"
        raise SpecError(f"the rule {rule!r} needs {what}", where="rule", remedy="measure them, or take the rule 'svd'")
    if rule == "inputs_only":
        return Components(None, basis.inputs, wide @ basis.inputs, basis.input_values[None])
    left, right = basis.gradients, basis.inputs
    if rule == "random_rotation":
        left, right = (rotation(len(side), generator).to(wide) for side in (left, right))
    coefficients = left.T @ wide @ right
    scores = basis.products if measured is None or rule != "ekfac" else measured.double()
    return Components(left, right, coefficients, scores * coefficients.square() if rule == "saliency" else scores)


def kept(scores: Tensor, rho: float, shrinkage: Shrinkage = "hard") -> Tensor:
    """M, in the shape of the scores, float64: how much of each component is kept, from 0 to 1.

    Args:
        scores: At least 0.
        rho: Share of the scores' sum to keep, in (0, 1]; 1 keeps everything.
        shrinkage: `hard` or `soft`.

    Raises:
        SpecError: `rho` is outside its range, or the scores are not finite, or all 0.
    """
    if not 0 < rho <= 1:
        raise SpecError(f"found {rho}", where="rho", allowed="a number above 0 and at most 1")
    total = scores.sum()
    if not (scores.isfinite().all() and total > 0):
        finding = "all scores are 0, so nothing can be ranked" if scores.isfinite().all() else "a score is not finite"
        raise SpecError(finding, where="curvature", remedy="measure on examples that the model is not certain of")
    if rho == 1:
        return torch.ones_like(scores)
    return _prefix(scores, rho) if shrinkage == "hard" else _shrunk(scores, rho * float(total))


def rotation(size: int, generator: torch.Generator) -> Tensor:
    """A random orthonormal matrix `[size, size]`, uniform over all of them, float64 on the CPU."""
    vectors, triangle = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    # Without the signs of the triangle the distribution is not uniform (Mezzadri 2007).
    uniform: Tensor = vectors * triangle.diagonal().sign()
    return uniform


def _prefix(scores: Tensor, rho: float) -> Tensor:
    order = scores.flatten().sort(descending=True, stable=True)
    mass = order.values.cumsum(0)
    count = int((mass < rho * mass[-1]).sum()) + 1
    mask = torch.zeros_like(mass)
    mask[order.indices[:count]] = 1
    return mask.view(scores.shape)


def _shrunk(scores: Tensor, mass: float) -> Tensor:
    """M = s / (s + tau), with tau by bisection of its logarithm."""
    middle = math.log(float(scores.max()))
    low, high = middle - 100, middle + 100
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if float((scores.square() / (scores + math.exp(middle))).sum()) > mass:
            low = middle
        else:
            high = middle
    return scores / (scores + math.exp(middle))
