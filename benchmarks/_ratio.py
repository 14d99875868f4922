"""Two things timed in turn, A B A B ..., so that a drift of the machine's speed falls on both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """Ours over theirs: the ratio of the fastest runs, and the spread of the ratios pair by pair."""

    best: float
    low: float
    median: float
    high: float
    ours: float
    theirs: float

    def __str__(self) -> str:
        return (
            f"{self.best:.3f} of the fastest ({self.ours * 1e3:.1f} ms against {self.theirs * 1e3:.1f} ms); "
            f"pairs {self.low:.3f} / {self.median:.3f} / {self.high:.3f} (min / median / max)"
        )


def compare(ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> Ratio:
    """Time both, one warm-up each, then `repeats` pairs."""
    ours(), theirs()
    pairs = [(_time(ours), _time(theirs)) for _ in range(repeats)]
    ratios = [a / b for a, b in pairs]
    best_a, best_b = min(a for a, _ in pairs), min(b for _, b in pairs)
    return Ratio(best_a / best_b, min(ratios), statistics.median(ratios), max(ratios), best_a, best_b)


def _time(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
