"""Predict from examples and the activation whether long training loses the main feature of your data.

The targets' coefficients come from `single_index`, the activation's from `hermite`. `fading` computes the result, for
the estimate and for every bootstrap replicate: kappa, the end of the alignment, its peak, its half-life, the floor of
finitely many units, and the alignment after the planned steps.

The forecast is valid only for the derived model of `fading`: a network with one hidden layer, trained by plain gradient
steps on squared errors, on large batches of examples that are not repeated. All weights of the second layer start equal
and positive, rows of the first layer have length 1, and there is no momentum and no weight decay. With weights of both
signs, as in common initialisations, even degrees cancel and units diverge from each other; repeated examples add
overfitting; for cross-entropy none of the numbers are valid. The assumptions that the data can show are tested. If a
test fails, `reasons` says so, and the forecast must not be used.

Cost: that of `single_index`, and about 20 ms per replicate; no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from expunge.base.errors import SpecError
from expunge.evidence.estimate import Estimate
from expunge.numerics.fading import FastSlow, Regime
from expunge.numerics.hermite import Hermite, hermite
from expunge.numerics.single_index import SingleIndex, single_index

DEGREE = 16
"""Highest degree of the activation that is used; a large remainder is reported."""
NOTHING = 1e-6
"""A coefficient below this share of the activation's root mean square counts as 0."""


@dataclass(frozen=True)
class FadingForecast:
    """The forecast for the feature; intervals are 90 % intervals over bootstrap replicates."""

    kappa: Estimate
    """(c_2 / sigma_2) / (c_1 / sigma_1): with two degrees, 1 or more keeps the feature and 0 or less loses it;
    NaN if sigma_2 is 0."""
    regime: Regime
    """See `fading`: kept, part, lost or folded."""
    agreement: float
    """Share of the replicates with the same regime."""
    peak: Estimate
    """The highest alignment within the steps."""
    left: Estimate
    """Alignment after the steps."""
    end: Estimate
    """Alignment at the end of endless training; with `units` the floor."""
    half_life: Estimate
    """Steps from the peak until half of it is left; infinite if that is not within the steps."""
    data: SingleIndex
    """The estimates from the examples."""
    activation: tuple[float, ...]
    """sigma_0, sigma_1, and so on."""
    reasons: tuple[str, ...]
    """Why the forecast must not be used; empty if no test failed."""

    def __str__(self) -> str:
        lines = [f"{name}: {getattr(self, name)}" for name in ("kappa", "peak", "left", "end", "half_life")]
        head = f"regime: {self.regime} ({100 * self.agreement:.0f} % of replicates)"
        return "\n".join([head, *lines, *(f"must not be used: {reason}" for reason in self.reasons)])


def forecast(
    inputs: Tensor,
    targets: Tensor,
    activation: Callable[[Tensor], Tensor],
    generator: torch.Generator,
    *,
    scale: float,
    ratio: float,
    step: float,
    steps: int,
    units: int | None = None,
    output_bias: bool = True,
    kinks: Sequence[float] = (),
    degree: int = 4,
    replicates: int = 200,
) -> FadingForecast:
    """Predict the alignment with the direction that the targets depend on.

    Args:
        inputs: `[n, ...]`, at least 4 examples for each entry; they are centred and whitened here.
        targets: One number per example, `[n]`; -1 and 1 for two classes.
        activation: The hidden layer's activation, such as `torch.tanh`.
        generator: Draws the halves and the bootstrap.
        scale: Initial weights of the second layer, a in f = 1/N sum a_i sigma(<w_i, x>).
        ratio: The second layer's step size divided by the first one's; both multiply N times the gradient.
        step: The first layer's step size.
        steps: Number of planned steps.
        units: N, at most the number of inputs plus 1; `None` for a wide layer, without a floor.
        output_bias: Whether the output has a bias that learns at least as fast as the first layer. Then means do not
            matter; without one, sigma_0 and c_0 matter.
        kinks: Where the activation has kinks: `(0.0,)` for ReLU.
        degree: Highest estimated degree of the targets' dependence; higher degrees count as 0.
        replicates: Number of bootstrap replicates.

    Raises:
        SpecError: A setting or the data cannot be used: see `single_index` and `FastSlow`; sigma_1 is 0; there are more
            units than inputs plus 1.
        RunError: The activation has a value that is not finite.
    """
    if min(scale, ratio, step) <= 0 or step * steps <= 0.01:
        finding = f"scale = {scale}, ratio = {ratio}, step = {step}, steps = {steps}"
        raise SpecError(finding, where="forecast", allowed="positive numbers, and step * steps above 0.01")
    shape = hermite(activation, DEGREE, kinks=kinks, tolerance=1e-8)
    sigma = _significant(shape)
    if float(sigma[1]) == 0:
        raise SpecError("has no linear part: sigma_1 = 0", where="activation", allowed="such as tanh or GELU")
    data = single_index(inputs, targets, generator, degree=degree, replicates=replicates)
    if units is not None and units > len(data.direction) + 1:
        allowed = f"at most {len(data.direction) + 1}, one more than there are inputs, or None"
        raise SpecError(f"units = {units}", where="forecast", allowed=allowed)
    # With a negative sigma_1 the units turn to -u.
    turned = sigma.sign()[1] ** torch.arange(degree + 1)
    if output_bias:
        sigma[0] = 0.0

    def outcome(teacher: Tensor) -> dict[str, float | Regime] | None:
        c = teacher * turned
        if not float(c[1] * sigma[1]) > 0:
            return None
        return _outcome(FastSlow(c.tolist(), sigma.tolist(), ratio, units), scale, step, steps)

    whole = outcome(data.teacher)
    drawn = [result for teacher in data.replicates if (result := outcome(teacher)) is not None]
    reasons = _unmet(data, scale, step, sigma, shape.left_out, float(shape.errors.max()), whole)

    def estimate(name: str, unit: str) -> Estimate:
        value = math.nan if whole is None else float(whole[name])
        values = [float(result[name]) for result in drawn if not math.isnan(float(result[name]))]
        low, high = np.quantile(values, [0.05, 0.95], method="inverted_cdf") if values else (math.nan, math.nan)
        return Estimate(value, float(low), float(high), data.examples, unit, "reference")

    regime = "folded" if whole is None else str(whole["regime"])
    same = sum(result["regime"] == regime for result in drawn) / replicates
    return FadingForecast(
        estimate("kappa", ""),
        regime,  # type: ignore[arg-type]
        same,
        estimate("peak", "cosine"),
        estimate("left", "cosine"),
        estimate("end", "cosine"),
        estimate("half_life", "steps"),
        data,
        tuple(sigma.tolist()),
        reasons,
    )


def _significant(shape: Hermite) -> Tensor:
    """The activation's coefficients; those of degrees 1 and 2 are set to 0 if they do not exceed their error.

    For an odd activation sigma_2 is rounding noise, and a quotient by it would look like a number.
    """
    sigma = shape.values.clone()
    for degree in (1, 2):
        if abs(float(sigma[degree])) <= max(float(shape.errors[degree]), NOTHING * math.sqrt(shape.energy)):
            sigma[degree] = 0.0
    return sigma


def _outcome(model: FastSlow, scale: float, step: float, steps: int) -> dict[str, float | Regime]:
    regime, end = model.regime(scale)
    path = model.path(scale, step * steps, points=200, tolerance=1e-6)
    return {
        # If sigma_2 is 0, kappa would be infinite, with both signs among the replicates.
        "kappa": model.kappa if math.isfinite(model.kappa) else math.nan,
        "regime": regime,
        "peak": path.peak,
        "left": float(path.alignment[-1]),
        "end": end,
        "half_life": path.half_life / step,
        "scale": float(path.scale.max()),
    }


def _unmet(
    data: SingleIndex,
    scale: float,
    step: float,
    sigma: Tensor,
    left_out: float,
    error: float,
    whole: dict[str, float | Regime] | None,
) -> tuple[str, ...]:
    """The assumptions that the data contradict."""
    reasons = []
    if whole is None or float(data.squared.quantile(0.05)) <= 0:
        return ("targets depend linearly on no direction: c_1 cannot be distinguished from 0",)
    if float(sigma[2]) == 0:
        reasons.append("sigma_2 of the activation cannot be distinguished from 0, as in odd ones: there is no kappa")
    if data.overlap < 0.7:
        reasons.append(f"the direction is uncertain: from half of the examples, its cosine is {data.overlap:.2f}")
    c_1, c_2 = float(data.teacher[1]), float(data.teacher[2])
    # If inputs are not Gaussian, c_1 and c_2 bias the estimate of c_2.
    leak = abs(c_1 * data.skewness) + abs(c_2 * data.excess)
    low, high = data.replicates[:, 2].nanquantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
    if leak > max(0.1 * c_1, (high - low) / 2):
        shift = f"which may move c_2 = {c_2:.2g} by {leak:.2g}"
        reasons.append(f"inputs are not Gaussian along the direction (skewness, excess), {shift}")
    if data.second > max(0.1 * c_1**2, 3 * data.second_error):
        reasons.append(f"targets depend on a second direction as well: {data.second:.2g} beside c_1^2 = {c_1**2:.2g}")
    if left_out > 0.1 or error > 1e-2 * math.sqrt(float(sigma.square().sum())):
        reasons.append("the activation's coefficients are not precise enough: name its kinks, or take a smoother one")
    if step * float(whole["scale"]) ** 2 * float(sigma[1]) ** 2 >= 1:
        reasons.append(f"steps of {step} will not be stable: second-layer weights grow to {float(whole['scale']):.2g}")
    return tuple(reasons)
