"""Linear stability of unlearning: whether descent on one set and ascent on another leave a minimum, and how fast.

With the step and the curvatures of `linearised`, and A = (1 - mix) H_r - mix H_f, the second moment evolves by

    T(M) = (I - step A) M (I - step A) + step^2 V(M),      with momentum: T(M) = B M B^T + step^2 V(M_11)

for the state (w_k, w_k-1) of the heavy ball. A spectral radius of T above 1 means growth in mean square. E[w] alone
grows if A has an eigenvalue above 2 (1 + momentum) / step or below 0. For descent alone this is Wu et al. (2018) and
Dexter et al. (2024); the mix is that of Chang and Khanna (2602.02986), derived here and not compared with theirs.

If the linearised distance grows, the model begins to leave the minimum. That is neither forgetting nor deletion.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from scipy.optimize import brentq
from torch import Tensor

from expunge.base.errors import SpecError
from expunge.numerics._perron import Radius, spectral_radius
from expunge.numerics.linearised import Curvatures, Update

PRODUCTS = 200
"""Largest number of products for one value of the feedback; ten are usual, because its top eigenvalue is isolated."""


def mean_radius(curvatures: Curvatures, update: Update) -> float:
    """Largest growth factor per step of E[w]: above 1, the model leaves the minimum."""
    return max(_root(float(a), update) for a in torch.linalg.eigvalsh(curvatures.average(update.ascent_weight)))


def mean_limit(curvatures: Curvatures, update: Update) -> float:
    """Step size below which E[w] is stable: 2 (1 + momentum) / lambda_max(A), or 0 if A has a negative eigenvalue."""
    values = torch.linalg.eigvalsh(curvatures.average(update.ascent_weight))
    least, most = float(values[0]), float(values[-1])
    if least < -_rounding(values):
        return 0.0
    return 2 * (1 + update.momentum) / most if most > _rounding(values) else math.inf


def critical_ascent_weight(curvatures: Curvatures) -> float:
    """Weight of the ascent above which E[w] grows at every step size: 1 / (1 + max of v^T H_f v / v^T H_r v).

    It is 0 if the forget set has curvature in a direction in which the retain set has none. That is always the case if
    gradients are linearly independent.
    """
    retain, forget = curvatures.means
    values, vectors = torch.linalg.eigh(retain)
    curved = values > _rounding(values)
    flat = vectors[:, ~curved]
    if float((flat.T @ forget @ flat).diagonal().sum()) > 1e-9 * float(forget.trace()):
        return 0.0
    half = vectors[:, curved] * values[curved].rsqrt()
    return 1 / (1 + float(torch.linalg.eigvalsh(half.T @ forget @ half)[-1]))


def mean_square(curvatures: Curvatures, update: Update) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """T as a function of symmetric matrices, and a matrix of their shape: `[r, r]`, with momentum `[2 r, 2 r]`."""
    average, size = curvatures.average(update.ascent_weight), curvatures.factors.shape[1]
    unit = torch.eye(size).to(average)
    mean = (1 + update.momentum) * unit - update.step * average
    if update.momentum:
        upper = torch.cat([mean, -update.momentum * unit], 1)
        mean = torch.cat([upper, torch.cat([unit, torch.zeros_like(unit)], 1)])

    def apply(matrix: Tensor) -> Tensor:
        following = mean @ matrix @ mean.T
        following[:size, :size] += update.step**2 * curvatures.noise(matrix[:size, :size], update)
        return following

    return apply, mean


def mean_square_radius(curvatures: Curvatures, update: Update, *, tolerance: float = 1e-6, limit: int = 2000) -> Radius:
    """Growth per step of E[w w^T] in the range of the curvatures, by power iteration, between two bounds.

    Cost: up to `limit` products, each O(m k r (r + k)) operations.

    Args:
        curvatures: Curvatures of the sampled examples.
        update: The planned step.
        tolerance: Largest distance of the bounds, relative to the upper one.
        limit: Largest number of products.

    Raises:
        RunError: The map is not finite.
    """
    apply, like = mean_square(curvatures, update)
    weight = None if update.momentum else torch.ones_like(like)
    return spectral_radius(apply, like, weight=weight, tolerance=tolerance, limit=limit)


def noise_radius(curvatures: Curvatures, update: Update, *, tolerance: float = 1e-6, limit: int = 2000) -> Radius:
    """Spectral radius of step^2 V alone; without momentum, at most that of T."""
    like = curvatures.means[0]

    def apply(matrix: Tensor) -> Tensor:
        return update.step**2 * curvatures.noise(matrix, update)

    return spectral_radius(apply, like, weight=torch.ones_like(like), tolerance=tolerance, limit=limit)


def one_step_bound(curvatures: Curvatures, update: Update) -> float:
    """Largest eigenvalue of E[J^2]: the largest mean growth of |w|^2 in one step; at least the radius of T.

    Raises:
        SpecError: The update has momentum: then single steps may grow although the sequence shrinks.
    """
    if update.momentum:
        raise SpecError("the bound is for steps without momentum", where="momentum", allowed="0")
    apply, like = mean_square(curvatures, update)
    return float(torch.linalg.eigvalsh(apply(torch.eye(len(like)).to(like)))[-1])


def mean_square_limit(curvatures: Curvatures, update: Update) -> float:
    """Step size below which E[w w^T] is stable; 0 if E[w] grows at every step size. Ignores the update's step size.

    If E[w] is stable, the response to noise that enters once is sum_t h_i(t) h_j(t) in the eigenbasis of A, with h_i
    the impulse response along direction i. The total is bounded if and only if the noise fed back is less than the
    noise that entered: if step^2 times the radius of M -> response * V(M) is below 1, with the entrywise product.
    """
    highest = mean_limit(curvatures, update)
    if highest in (0.0, math.inf):
        return highest
    turned, values = _turned(curvatures, update)
    moving = values > _rounding(values)
    turned = Curvatures(turned.factors[:, moving], turned.retained)

    def fed_back(step: float) -> float:
        return _fed_back(turned, replace(update, step=step), values[moving], 1.0)

    # At the upper end responses diverge, unless there is no noise.
    return _crossing(fed_back, highest * (1 - 1e-9), highest * 1e-6)


def growth_rate(curvatures: Curvatures, update: Update) -> float:
    """log(rho) / 2 per step for the radius rho of T in the range of the curvatures: how fast the distance grows.

    Power iteration would take about 1 / rate products. Here rho is the z at which noise that decays as z^-t feeds back
    exactly what entered, as for the limit above. It is above the square of the mean's radius, where responses diverge.
    """
    turned, values = _turned(curvatures, update)
    least = mean_radius(curvatures, update) ** 2

    def fed_back(excess: float) -> float:
        return _fed_back(turned, update, values, least * (1 + excess))

    far = 1e-3
    while fed_back(far) >= 1:
        far *= 8
    return 0.5 * (math.log(least) + math.log1p(_crossing(fed_back, 1e-11, far)))


def growth_steps(rate: float, factor: float) -> float:
    """Steps until the distance has grown by a factor; infinite if it does not grow."""
    return math.log(factor) / rate if rate > 0 else math.inf


def _turned(curvatures: Curvatures, update: Update) -> tuple[Curvatures, Tensor]:
    """The curvatures in the eigenbasis of A, and the eigenvalues of A."""
    values, vectors = torch.linalg.eigh(curvatures.average(update.ascent_weight))
    return Curvatures(vectors.T @ curvatures.factors, curvatures.retained), values


def _crossing(fed_back: Callable[[float], float], endless: float, low: float) -> float:
    """Where the feedback is 1, between its pole `endless` and `low`, where it is below 1; `endless` if never."""
    if fed_back(endless) <= 1:
        return endless
    root, _ = brentq(lambda x: 1 - 1 / max(fed_back(x), 1e-12), low, endless, rtol=1e-7, xtol=1e-15, full_output=True)
    return float(root)


def _fed_back(curvatures: Curvatures, update: Update, values: Tensor, decay: float) -> float:
    """Spectral radius of M -> response * V(M); the map is self-adjoint in <M, V(N)>, so its eigenvalues are real."""
    response = _responses(values, update, decay)
    matrix, value = torch.eye(len(values)).to(response), 0.0
    for _ in range(PRODUCTS):
        noise = update.step**2 / decay * curvatures.noise(matrix, update)
        following = response * noise
        size, before = float((noise * matrix).sum()), value
        if size <= 0:  # nothing is fed back
            return 0.0
        value = float((noise * following).sum()) / size
        # The quotient's error is of second order in that of the matrix.
        if abs(value - before) <= 1e-7 * value:
            break
        matrix = following / following.norm()
    return value


def _responses(values: Tensor, update: Update, decay: float) -> Tensor:
    """Sum over t of h_i(t) h_j(t) / decay^t, where h follows x <- [[1 + b - step a, -b], [1, 0]] x from (1, 0)."""
    beta, size = update.momentum, len(values)
    companion = values.new_zeros(size, 2, 2)
    companion[:, 0, 0], companion[:, 0, 1], companion[:, 1, 0] = 1 + beta - update.step * values, -beta, 1.0
    products = torch.einsum("iab,jcd->ijacbd", companion, companion).reshape(size, size, 4, 4) / decay
    unit = torch.eye(4).to(values)
    response: Tensor = torch.linalg.solve(unit - products, unit[:, 0].expand(size, size, 4))[..., 0]
    return response


def _root(value: float, update: Update) -> float:
    """Larger root of z^2 - (1 + beta - step a) z + beta, in absolute value."""
    trace, beta = 1 + update.momentum - update.step * value, update.momentum
    square = trace**2 - 4 * beta
    return math.sqrt(beta) if square < 0 else (abs(trace) + math.sqrt(square)) / 2


def _rounding(values: Tensor) -> float:
    return 1e-9 * float(values.abs().max())
