"""Estimate a statistic of the whole set, with its error, from the same statistic on random halves of a sample.

For a sample of m out of n, drawn without replacement, bias and variance of a smooth statistic are proportional to
1/m - 1/n. Those of a half, compared with the sample, are proportional to 1/h - 1/m (Shao and Wu 1989, the delete-half
jackknife). Let w = (1/m - 1/n) / (1/h - 1/m). The mean difference between halves and sample, times w, estimates the
bias of the sample; the spread of the halves, times sqrt(w), estimates its standard error. Both are 0 if the sample is
the whole set. A statistic that itself shrinks as 1/m, such as coherences and eigenvalues of orthogonal gradients, is
extrapolated to n exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.evidence.estimate import Better, Estimate
from expunge.evidence.intervals import t_quantile

HALVES = 8
"""Random halves drawn for each set."""

Statistic = Callable[[Sequence[Tensor]], float]
"""Maps positions in each sample to a number."""


@dataclass(frozen=True)
class SampledSet:
    """A sample of one set."""

    groups: Tensor
    """The group of each sampled example, `[m]`; a group is never split between halves."""
    population: int
    """Number of examples in the whole set, n."""


def over_halves(
    statistic: Statistic,
    parts: Sequence[SampledSet],
    generator: torch.Generator,
    *,
    unit: str,
    better: Better = "reference",
    bounds: tuple[float, float] = (-math.inf, math.inf),
    inverse: bool = False,
) -> Estimate:
    """The statistic of the whole sets, with its 90 % interval over the choice of the samples.

    Args:
        statistic: Roughly linear in 1/m.
        parts: One for each set that the statistic depends on; the samples of all other sets count as fixed.
        generator: Draws the halves.
        unit: Unit of the value.
        better: Direction.
        bounds: Smallest and largest possible value; value and ends are clamped to them.
        inverse: Whether to report 1 / statistic.

    Returns:
        The estimate. `n` is the number of groups in the smallest sample. The ends are NaN if a sample has too few
        groups to be halved.
    """
    places = [torch.arange(len(part.groups)) for part in parts]
    value, variance = statistic(places), 0.0
    shift = 0.0
    for index, part in enumerate(parts):
        part_shift, part_variance = _of_part(statistic, places, index, part, value, generator)
        shift, variance = shift + part_shift, variance + part_variance
    draws = min(len(part.groups.unique()) for part in parts)
    half = t_quantile(min(draws, HALVES) - 1) * math.sqrt(variance) if variance else 0.0
    unknown = math.isnan(variance)
    ends = (value, math.nan, math.nan) if unknown else (value - shift, value - shift - half, value - shift + half)
    return _shown(ends, draws, unit, better, bounds, inverse)


def _of_part(
    statistic: Statistic, places: list[Tensor], index: int, part: SampledSet, value: float, generator: torch.Generator
) -> tuple[float, float]:
    """Bias and variance that the sample of one set causes; both 0 if the sample is the whole set."""
    count, groups = len(part.groups), part.groups.unique()
    if count >= part.population:
        return 0.0, 0.0
    if len(groups) < 4:
        return 0.0, math.nan
    differences, ratios = [], []
    for _ in range(HALVES):
        chosen = groups[torch.randperm(len(groups), generator=generator)[: len(groups) // 2]]
        half = torch.isin(part.groups, chosen).nonzero()[:, 0]
        differences.append(statistic([*places[:index], half, *places[index + 1 :]]) - value)
        ratios.append((1 / count - 1 / part.population) / (1 / len(half) - 1 / count))
    off, w = torch.tensor([differences, ratios], dtype=torch.float64)
    spread = off - off.mean()
    return float((w * off).mean()), float((w * spread**2).sum()) / (HALVES - 1)


def _shown(
    ends: tuple[float, ...], draws: int, unit: str, better: Better, bounds: tuple[float, float], inverse: bool
) -> Estimate:
    least, most = bounds
    if inverse:
        value, high, low = (1 / end if end > 0 else end if math.isnan(end) else math.inf for end in ends)
    else:
        value, low, high = ends
    value, low, high = (end if math.isnan(end) else min(max(end, least), most) for end in (value, low, high))
    return Estimate(value, low, high, draws, unit, better)
