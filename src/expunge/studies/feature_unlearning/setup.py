"""Runs of the study `feature_unlearning`: two-layer networks with one hidden direction, by SGD and by exact flow.

Both move unit rows w_i on their sphere and second-layer weights a_i by gradients of N E[(y - f)^2 / 2]; the weights a_i
move slower by the factor `ratio`. SGD takes fresh Gaussian batches. The flow takes the population's gradient, which for
Hermite series depends only on the rows' inner products. Both are compared with the equations of `numerics.fading`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.polynomial import Polynomial
from torch import Tensor
from torch.nn import functional as F

from expunge.numerics.fading import FastSlow
from expunge.numerics.hermite import hermite
from expunge.numerics.ode import Array

SIGMA = (0.0, 1.0, 0.5)
"""The activation h_1 + h_2 / 2; with c_1 = 1, C = c_1 / sigma_1 is 1 and kappa is 2 c_2."""
STRENGTHS = (1.0, 0.25, 0.0, -0.5)
"""c_2: kappa is 2, 1/2, 0 and -1."""
SCALES = (0.5, 1.0, 3.0)
"""Initial second-layer weights a_0; the reversal at kappa = 1/2 needs more than C / kappa = 2."""
SOFTPLUS_MEAN = float(hermite(F.softplus, 1).values[0])

Shape = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]
"""An activation and its derivative."""


def quadratic(z: Tensor) -> Tensor:
    """`SIGMA` as a function."""
    return z + SIGMA[2] * (z * z - 1) / math.sqrt(2)


QUADRATIC: Shape = (quadratic, lambda z: 1 + SIGMA[2] * math.sqrt(2) * z)
SOFTPLUS: Shape = (lambda z: F.softplus(z) - SOFTPLUS_MEAN, torch.sigmoid)


def softplus_series() -> tuple[float, ...]:
    """Hermite coefficients of softplus without its mean."""
    return (0.0, *hermite(F.softplus, 8).values[1:].tolist())


@dataclass(frozen=True)
class NetworkSetting:
    """A network and its training."""

    units: int
    inputs: int
    batch: int
    step: float = 0.05
    ratio: float = 0.1
    """epsilon."""
    scale: float = 1.0
    """a_0."""
    shape: Shape = QUADRATIC
    series: tuple[float, ...] = SIGMA
    """The activation's Hermite coefficients."""


@dataclass(frozen=True)
class Way:
    """Means over units along training; time is step size times steps."""

    times: Array
    alignment: Array
    scale: Array


def model(second: float, ratio: float, units: int | None = None, series: Sequence[float] = SIGMA) -> FastSlow:
    """The derived model for a teacher h_1 + c_2 h_2."""
    return FastSlow((0.0, 1.0, second), tuple(series), ratio, units)


def by_sgd(
    second: float, setting: NetworkSetting, horizon: float, generator: torch.Generator, points: int = 150
) -> Way:
    """SGD on fresh batches, from rows orthogonal to the direction."""
    rows = _orthogonal_rows(setting, generator).float()
    scales = torch.full((setting.units,), setting.scale)
    activation, slope = setting.shape
    steps = round(horizon / setting.step)
    looks = set(np.unique(np.linspace(0, steps, points).round().astype(int)).tolist())
    seen: list[tuple[float, float, float]] = [(0.0, 0.0, setting.scale)]
    for step in range(1, steps + 1):
        x = torch.randn(setting.batch, setting.inputs, generator=generator)
        z, along = x @ rows.T, x[:, 0]
        hidden = activation(z)
        residual = along + second * (along**2 - 1) / math.sqrt(2) - hidden @ scales / setting.units
        pull = (residual[:, None] * slope(z) * scales).T @ x / setting.batch
        pull -= (pull * rows).sum(1, keepdim=True) * rows
        scales = scales + setting.step * setting.ratio * (residual @ hidden) / setting.batch
        rows = F.normalize(rows + setting.step * pull, dim=1)
        if step in looks:
            seen.append((step * setting.step, float(rows[:, 0].mean()), float(scales.mean())))
    return Way(*(np.array(column) for column in zip(*seen, strict=True)))


def by_flow(
    second: float, setting: NetworkSetting, horizon: float, generator: torch.Generator, points: int = 150
) -> Way:
    """The population's gradient for finitely many units, without sampling, in double precision."""
    rows = _orthogonal_rows(setting, generator)
    scales = torch.full((setting.units,), setting.scale, dtype=torch.float64)
    v = _polynomial([s * c for s, c in zip(setting.series, (0.0, 1.0, second), strict=False)])
    u = _polynomial([s * s for s in setting.series])
    steps = round(horizon / setting.step)
    looks = set(np.unique(np.linspace(0, steps, points).round().astype(int)).tolist())
    seen: list[tuple[float, float, float]] = [(0.0, 0.0, setting.scale)]
    for step in range(1, steps + 1):
        along, inner = rows[:, 0], rows @ rows.T
        pull = -((scales * u[1](inner)) @ rows) / setting.units
        pull[:, 0] += v[1](along)
        pull = scales[:, None] * (pull - (pull * rows).sum(1, keepdim=True) * rows)
        slow = v[0](along) - u[0](inner) @ scales / setting.units
        rows = F.normalize(rows + setting.step * pull, dim=1)
        scales = scales + setting.step * setting.ratio * slow
        if step in looks:
            seen.append((step * setting.step, float(rows[:, 0].mean()), float(scales.mean())))
    return Way(*(np.array(column) for column in zip(*seen, strict=True)))


def errors(way: Way, second: float, setting: NetworkSetting, *, corrected: bool = False) -> tuple[float, float]:
    """Root mean squared differences to the derived model: of the alignment, and of the scale relative to the model's.

    Args:
        way: The measured path of training.
        second: c_2.
        setting: The network and its training.
        corrected: Whether to compare with the model of finitely many units, not of a wide layer.
    """
    equations = model(second, setting.ratio, setting.units if corrected else None, setting.series)
    times = way.times[1:]
    states = equations.solve(setting.scale, np.append(0.0, times)).states[1:]
    s, a = np.tanh(states[:, 0]), states[:, 1]
    off = way.alignment[1:] - s, way.scale[1:] / a - 1
    return float(np.sqrt(np.mean(off[0] ** 2))), float(np.sqrt(np.mean(off[1] ** 2)))


def predicted_end(kappa: float) -> float:
    """The final alignment by the closed criterion; the same for a_0 below or above C / kappa."""
    return min(max(kappa, 0.0), 1.0)


def slope(x: Sequence[float] | Array, y: Sequence[float] | Array) -> float:
    """Slope of a line through the logarithms, by least squares."""
    return float(np.polyfit(np.log(np.asarray(x)), np.log(np.asarray(y)), 1)[0])


def _orthogonal_rows(setting: NetworkSetting, generator: torch.Generator) -> Tensor:
    rows = torch.randn(setting.units, setting.inputs, generator=generator, dtype=torch.float64)
    rows[:, 0] = 0
    return F.normalize(rows, dim=1)


def _polynomial(coefficients: Sequence[float]) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """A polynomial and its derivative, on tensors."""
    whole = Polynomial(coefficients)

    def on_tensors(polynomial: Polynomial) -> Callable[[Tensor], Tensor]:
        values = [float(c) for c in polynomial.coef]

        def value(at: Tensor) -> Tensor:
            total = torch.zeros_like(at)
            for c in reversed(values):
                total = total * at + c
            return total

        return value

    return on_tensors(whole), on_tensors(whole.deriv())
