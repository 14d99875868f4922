"""How strongly examples depend on the same weights: coherences, the noise that they cause, and step size bounds.

    S_ij = ||H_i^1/2 H_j^1/2||_F = sqrt(tr(H_i H_j)),    sigma = lambda_1(S) / max_i lambda_1(H_i)

(Dexter et al. 2024). For n gradients of equal length sigma is 1 if they are orthogonal, n if they are equal. Between
two sets the spectral norm of their block of S replaces lambda_1, and the geometric mean of the two maxima replaces the
maximum: 0 if the sets share nothing, sqrt(n m) if all gradients are equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.base.errors import SpecError
from expunge.numerics.linearised import Draw, Update, require_gram


def similarities(gram: Tensor, *, rows: int = 1) -> Tensor:
    """S, `[m, m]`, exact for curvatures of any rank.

    Args:
        gram: Inner products of the columns of all G_i, `[m rows, m rows]`, with H_i = G_i G_i^T.
        rows: Columns per example.

    Raises:
        SpecError: The matrix is not square and finite, or its size is no multiple of `rows`.
    """
    require_gram(gram, rows)
    return _blocks(gram, rows).square().sum((2, 3)).sqrt()


def sharpnesses(gram: Tensor, *, rows: int = 1) -> Tensor:
    """lambda_1(H_i) of each example, `[m]`.

    Raises:
        SpecError: As above.
    """
    require_gram(gram, rows)
    own = _blocks(gram, rows).diagonal(dim1=0, dim2=1).permute(2, 0, 1)
    values: Tensor = torch.linalg.eigvalsh(own)
    return values[:, -1]


def coherence(similarity: Tensor, sharpness: Tensor) -> float:
    """Sigma of one set from its block of S `[n, n]` and lambda_1 of each H_i `[n]`; NaN if all curvatures are 0."""
    most = float(sharpness.max())
    return float(torch.linalg.eigvalsh(similarity)[-1]) / most if most > 0 else math.nan


def coherence_between(similarity: Tensor, ours: Tensor, theirs: Tensor) -> float:
    """Sigma of two sets from their block of S `[n, m]` and lambda_1 of each H_i; NaN if one set has no curvature."""
    most = math.sqrt(max(float(ours.max() * theirs.max()), 0.0))
    return float(torch.linalg.matrix_norm(similarity, 2)) / most if most > 0 else math.nan


def effective_rank(similarity: Tensor, traces: Tensor) -> float:
    """(tr H)^2 / tr(H^2) of the mean H of a set: the number of directions, if H were equally curved in all.

    Args:
        similarity: S of the set, `[n, n]`.
        traces: tr(H_i), `[n]`.
    """
    return float(traces.sum() ** 2 / similarity.square().sum())


def noise_matrix(similarity: Tensor, retained: int, update: Update) -> Tensor:
    """Gamma `[m, m]`: b_i b_j S_ij^2 with b^2 = step^2 u^2 c / n of the example's set.

    With H_i of rank one and independently drawn examples (`bernoulli`), its largest eigenvalue *is* the spectral radius
    of the noise step^2 V: above 1, the update leaves the minimum in mean square. Its three blocks are the noise within
    retain, within forget, and between. Batches without replacement have a little less noise.

    Args:
        similarity: S, the retain set's examples first.
        retained: Number of retain examples.
        update: The planned step.

    Raises:
        SpecError: One of the sets has no examples.
    """
    if not 0 < retained < len(similarity):
        raise SpecError(f"{retained} of {len(similarity)}", where="retained", allowed="examples of both sets")
    counts = (retained, len(similarity) - retained)
    sides = zip(counts, (1 - update.ascent_weight, update.ascent_weight), (update.retain, update.forget), strict=True)
    scale = torch.cat([similarity.new_full((n,), update.step * u * math.sqrt(d.noise / n)) for n, u, d in sides])
    return scale[:, None] * scale * similarity.square()


@dataclass(frozen=True)
class DescentBounds:
    """Bounds on the step size of plain descent on one set (Dexter et al. 2024)."""

    leaves_above: float
    """Above this step size, E||J_k ... J_1||^2 grows without bound."""
    may_stay_below: float
    """Below this step size, some set with this coherence, sharpness and size is stable."""


def descent_bounds(sharpness: float, sigma: float, draw: Draw) -> DescentBounds:
    """Both bounds, for batches that take each example independently.

        leaves_above = min(2, sigma (n/B - 1)^-1/2) / lambda_1
        may_stay_below = 2 sigma / (lambda_1 (sigma + n/B - 1))

    Args:
        sharpness: lambda_1 of the mean H, positive.
        sigma: Coherence of the whole set, 1 to n.
        draw: Size of the set and of its batches.

    Raises:
        SpecError: The sharpness is not positive, or no set of this size has this coherence.
    """
    if not sharpness > 0 or not 1 - 1e-9 <= sigma <= draw.size * (1 + 1e-9):
        finding, allowed = f"sharpness = {sharpness}, sigma = {sigma}", f"a positive sharpness, sigma 1 to {draw.size}"
        raise SpecError(finding, where="descent_bounds", allowed=allowed)
    excess = draw.size / draw.batch - 1
    noisy = sigma / math.sqrt(excess) if excess else math.inf
    return DescentBounds(min(2, noisy) / sharpness, 2 * sigma / (sharpness * (sigma + excess)))


def _blocks(gram: Tensor, rows: int) -> Tensor:
    """`[m, m, rows, rows]` in double precision."""
    count = len(gram) // rows
    return gram.double().view(count, rows, count, rows).transpose(1, 2)
