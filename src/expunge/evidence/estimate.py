"""An estimate: a number with its interval, sample size, unit and direction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from expunge.base.errors import unknown
from expunge.evidence.contrast import sampling_error
from expunge.evidence.intervals import Floats, Ints, student, t_quantile, wilson

Better = Literal["higher", "lower", "reference"]
"""Which direction is good; `reference` means that a value close to the retrained model's is good."""


@dataclass(frozen=True)
class Estimate:
    """A measured value with its 90 % interval.

    Raises:
        SpecError: `better` is none of the three directions.
    """

    value: float
    low: float
    """Lower end of the 90 % interval, with an error rate of 5 % on each side; NaN if there is no interval."""
    high: float
    n: int
    """Number of independent values in the mean: examples within a seed, or seeds."""
    unit: str
    better: Better

    def __post_init__(self) -> None:
        if self.better not in get_args(Better):
            raise unknown("direction", str(self.better), get_args(Better), where="better")

    @property
    def half_width(self) -> float:
        """Half the width of the interval, NaN if there is no interval."""
        return (self.high - self.low) / 2

    def as_json(self) -> dict[str, Any]:
        """Plain data in the order of the fields. A NaN stays a float; the writer decides how to spell it."""
        return asdict(self)

    def __str__(self) -> str:
        spread = "" if math.isnan(self.low) else f" [{self.low:.4g}, {self.high:.4g}]"
        return f"{self.value:.4g}{spread} {self.unit}".rstrip()


def over_examples(values: Floats, unit: str, better: Better, group: Ints | None = None) -> Estimate:
    """The mean over examples of one model.

    If all values are 0 or 1, the interval is Wilson's, because Student's has no width at a rate of 0 or 1. Otherwise it
    is Student's. Copies of one example are one draw, so with groups the error is taken over groups.

    Args:
        values: One value per example, `[n]`.
        unit: Unit of the values.
        better: Direction.
        group: Group of each example, `[n]`; copies of one example share a group.

    Returns:
        The mean with its interval; the ends are NaN for fewer than two draws, whose error is unknown.
    """
    mean, draws = student(values)[0], int(values.size)
    if group is not None and np.unique(group).size < values.size:
        draws = int(np.unique(group).size)
        known = draws > 1 and math.isfinite(mean)
        half = t_quantile(draws - 1) * sampling_error([(1.0, values, group)]) if known else math.nan
        return Estimate(mean, mean - half, mean + half, draws, unit, better)
    if draws and is_binary(values):
        low, high = wilson(int(values.sum()), draws)
    else:
        _, low, high = student(values)
    return Estimate(mean, low, high, draws, unit, better)


def over_seeds(values: Sequence[float], unit: str, better: Better) -> Estimate:
    """The mean over seeds with Student's interval; `values` holds one number per seed."""
    mean, low, high = student(np.asarray(values, dtype=np.float64))
    return Estimate(mean, low, high, len(values), unit, better)


def together(seeds: Sequence[Estimate]) -> Estimate:
    """The mean over seeds of the seeds' estimates.

    The interval is Student's over seeds, but at least as wide as the average interval within a seed: measuring the same
    examples again is no new evidence.

    Args:
        seeds: One estimate per seed, at least one, in the same unit. A single estimate is returned unchanged.

    Returns:
        The mean; `n` counts seeds.
    """
    first = seeds[0]
    if len(seeds) == 1:
        return first
    mean = over_seeds([estimate.value for estimate in seeds], first.unit, first.better)
    # Without intervals within seeds the average end is NaN, which fmin and fmax ignore.
    low = np.fmin(mean.low, sum(estimate.low for estimate in seeds) / len(seeds))
    high = np.fmax(mean.high, sum(estimate.high for estimate in seeds) / len(seeds))
    return Estimate(mean.value, float(low), float(high), mean.n, first.unit, first.better)


def is_binary(values: npt.NDArray[np.float64]) -> bool:
    """Whether every value is exactly 0 or 1."""
    return bool(np.all((values == 0) | (values == 1)))
