"""How far examples pull at the same weights: three coherences, the noise that they make, and bounds on the step size.

    S_ij = ||H_i^1/2 H_j^1/2||_F = sqrt(tr(H_i H_j)),    sigma = lambda_1(S) / max_i lambda_1(H_i)

(Dexter et al. 2024). For n gradients of equal length sigma is 1 where they are orthogonal, n where they are the same.
Between two sets the spectral norm of their block of S takes the place of lambda_1, and the geometric mean that of the
maximum: 0 where the sets share nothing, sqrt(n m) where all are the same.
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
    """Sigma of one set from its block of S `[n, n]` and lambda_1 of each H_i `[n]`; NaN where nothing bends."""
    most = float(sharpness.max())
    return float(torch.linalg.eigvalsh(similarity)[-1]) / most if most > 0 else math.nan


def coherence_between(similarity: Tensor, ours: Tensor, theirs: Tensor) -> float:
    """Sigma of two sets from their block of S `[n, m]` and lambda_1 of each H_i; NaN where nothing of one bends."""
    most = math.sqrt(max(float(ours.max() * theirs.max()), 0.0))
    return float(torch.linalg.matrix_norm(similarity, 2)) / most if most > 0 else math.nan


def effective_rank(similarity: Tensor, traces: Tensor) -> float:
    """(tr H)^2 / tr(H^2) of the mean H of a set: in how many directions it bends, were it equally in all.

    Args:
        similarity: S of the set, `[n, n]`.
        traces: tr(H_i), `[n]`.
    """
    return float(traces.sum() ** 2 / similarity.square().sum())


def noise_matrix(similarity: Tensor, retained: int, update: Update) -> Tensor:
    """Gamma `[m, m]`: b_i b_j S_ij^2 with b^2 = step^2 u^2 c / n of the example's set.

    With H_i of rank one and batches to which each example belongs by itself, its largest eigenvalue *is* the spectral
    radius of the noise step^2 V, so that above 1 the update leaves in mean square. Its three blocks are the parts of
    noise within retain, within forget, and between. Batches without replacement have a little less noise than this.

    Args:
        similarity: S, the retain set's examples first.
        retained: How many these are.
        update: The planned step.

    Raises:
        SpecError: There are no such examples.
    """
    if not 0 < retained < len(similarity):
        raise SpecError(f"{retained} of {len(similarity)}", where="retained", allowed="examples of both sets")
    counts = (retained, len(similarity) - retained)
    sides = zip(counts, (1 - update.ascent_weight, update.ascent_weight), (update.retain, update.forget), strict=True)
    scale = torch.cat([similarity.new_full((n,), update.step * u * math.sqrt(d.noise / n)) for n, u, d in sides])
    return scale[:, None] * scale * similarity.square()


@dataclass(frozen=True)
class DescentBounds:
    """Of the step size of plain descent on one set (Dexter et al. 2024)."""

    leaves_above: float
    """Above this, E||J_k ... J_1||^2 grows without bound."""
    may_stay_below: float
    """Below this, some set with this coherence, sharpness and size is stable."""


def descent_bounds(sharpness: float, sigma: float, draw: Draw) -> DescentBounds:
    """Both bounds, for batches to which each example belongs by itself.

        leaves_above = min(2, sigma (n/B - 1)^-1/2) / lambda_1
        may_stay_below = 2 sigma / (lambda_1 (sigma + n/B - 1))

    Args:
        sharpness: lambda_1 of the mean H, positive.
        sigma: Coherence of the whole set, 1 to n.
        draw: Size of the set and of its batches.

    Raises:
        SpecError: The sharpness is not positive, or no set of this size has such a coherence.
    """
    if not sharpness > 0 or not 1 - 1e-9 <= sigma <= draw.size * (1 + 1e-9):
        found = f"sharpness = {sharpness}, sigma = {sigma}"
        raise SpecError(found, where="descent_bounds", allowed=f"a positive sharpness, and sigma from 1 to {draw.size}")
    others = draw.size / draw.batch - 1
    noisy = sigma / math.sqrt(others) if others else math.inf
    return DescentBounds(min(2, noisy) / sharpness, 2 * sigma / (sharpness * (sigma + others)))


def _blocks(gram: Tensor, rows: int) -> Tensor:
    """`[m, m, rows, rows]` in double precision."""
    count = len(gram) // rows
    return gram.double().view(count, rows, count, rows).transpose(1, 2)
