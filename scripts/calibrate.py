"""Write what `diagnostics/hardness.py` corrects by, from the steps predicted and measured in the study `stability`.

log(measured) = intercept + slope log(predicted) + noise by maximum likelihood over all runs; one that had not forgotten
when its steps ran out counts as at least as many (Tobin 1958): left out, the hardest sets would make the fit too low.
Runs that were predicted not to forget in time say nothing of either number. `spread` is the noise's standard deviation,
and `left_out` the share of runs that fell into the 90 % interval of a fit to the other seeds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from scipy.optimize import minimize

from expunge.diagnostics import hardness
from expunge.reporting.study import read_study

ROOT = Path(__file__).resolve().parent.parent
STUDY = ROOT / "results" / "stability-cpu.json"
MOST = 1000
"""Steps at which runs were stopped."""

Pairs = Sequence[tuple[float, float]]
"""Predicted and measured steps."""


def fitted(pairs: Pairs) -> tuple[float, float, float]:
    """Intercept, slope and spread."""
    x, y, ended = _logs(pairs)

    def against(parameters: np.ndarray) -> float:
        intercept, slope, log_spread = parameters
        off = (y - intercept - slope * x) / np.exp(log_spread)
        likely = np.where(ended, stats.norm.logpdf(off) - log_spread, stats.norm.logsf(off))
        return -float(likely.sum())

    start = np.array([*np.polyfit(x, y, 1)[::-1], 0.0])
    intercept, slope, log_spread = minimize(against, start, method="Nelder-Mead", options={"xatol": 1e-8}).x
    return float(intercept), float(slope), float(np.exp(log_spread))


def covered(pairs: Pairs, fit: tuple[float, float, float]) -> tuple[int, int]:
    """How many of how many runs lie in the fit's 90 % interval; one that was stopped does if the end is beyond."""
    (x, y, ended), (intercept, slope, spread) = _logs(pairs), fit
    centre, half = intercept + slope * x, stats.norm.ppf(0.95) * spread
    inside = np.where(ended, np.abs(y - centre) <= half, centre + half >= y)
    return int(inside.sum()), len(inside)


def calibration(seeds: dict[str, Pairs]) -> dict[str, Any]:
    """From the pairs of every seed."""
    intercept, slope, spread = fitted([pair for pairs in seeds.values() for pair in pairs])
    inside = runs = 0
    for left, pairs in seeds.items():
        others = [pair for seed, found in seeds.items() if seed != left for pair in found]
        found = covered(pairs, fitted(others))
        inside, runs = inside + found[0], runs + found[1]
    numbers = {"intercept": intercept, "slope": slope, "spread": spread, "left_out": inside / runs}
    return {name: round(value, 4) for name, value in numbers.items()} | {"runs": runs}


def from_results() -> dict[str, Any]:
    """From the results that are kept."""
    return calibration({seed: found["plans"] for seed, found in read_study(STUDY)["measured"].items()})


def _logs(pairs: Pairs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = np.array([pair for pair in pairs if pair[0] < MOST], dtype=float)
    return np.log(found[:, 0]), np.log(found[:, 1]), found[:, 1] < MOST


def main() -> None:
    path = Path(hardness.__file__).with_name("hardness.json")
    path.write_text(json.dumps(from_results()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
