"""The search for the strongest edit that validation data allow: one strength for all layers, or one for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from expunge.base.errors import RunError

GRID = (0.999, 0.997, 0.99, 0.98, 0.97, 0.95, 0.93, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)
"""Kept shares to try, from the gentlest."""
HALVINGS = 4
"""Of the interval between the last share within the tolerance and the first one outside."""

PRICES = 1e-6, 1e6
"""Range of the price of damage, in shares of weights."""
PRICE_HALVINGS = 16
"""Of the logarithm of this range."""


def smallest(within: Callable[[float], bool]) -> float:
    """The smallest rho before the first one of `GRID` outside the tolerance, after some halvings.

    Args:
        within: Whether an edit with this rho is within the tolerance.

    Raises:
        RunError: No rho below 1 is.
    """
    good, bad = 1.0, None
    for rho in GRID:
        if not within(rho):
            bad = rho
            break
        good = rho
    for _ in range(HALVINGS if bad is not None else 0):
        middle = (good + bad) / 2  # type: ignore[operator]
        good, bad = (middle, bad) if within(middle) else (good, middle)
    if good == 1:
        raise _nothing_allowed()
    return good


class Option(NamedTuple):
    """One strength of the edit of one layer, alone."""

    rho: float
    gain: float
    """The share of the layer's squared weights that it removes."""
    damage: float
    """What it does to the validation data."""


def options(try_alone: Callable[[float], tuple[float, float]], allowed: float) -> list[Option]:
    """The strengths of `GRID` for one layer alone, up to the first one outside, and no edit.

    Args:
        try_alone: Gain and damage of an edit with this rho.
        allowed: Largest damage.
    """
    found = [Option(1.0, 0.0, 0.0)]
    for rho in GRID:
        option = Option(rho, *try_alone(rho))
        if option.damage > allowed:
            break
        found.append(option)
    return found


def allocated(
    by_layer: Mapping[str, Sequence[Option]], within: Callable[[Mapping[str, float]], bool]
) -> dict[str, float]:
    """Each layer's own rho: as much gain as possible for the damage, at one price of damage for all layers.

    Damages of single layers do not add up exactly, so each price is tried with all layers together.

    Args:
        by_layer: The options of each layer, the first of which is no edit.
        within: Whether an edit with these rhos is within the tolerance.

    Raises:
        RunError: No edit is.
    """

    def at(price: float) -> dict[str, float]:
        return {
            path: max(of, key=lambda option: option.gain - price * max(option.damage, 0.0)).rho
            for path, of in by_layer.items()
        }

    best = at(0.0)
    if not within(best):
        low, high, best = *PRICES, dict.fromkeys(by_layer, 1.0)
        for _ in range(PRICE_HALVINGS):
            middle = math.sqrt(low * high)
            chosen = at(middle)
            if within(chosen):
                high, best = middle, chosen
            else:
                low = middle
    if all(rho == 1 for rho in best.values()):
        raise _nothing_allowed()
    return best


def _nothing_allowed() -> RunError:
    return RunError(
        "even the gentlest edit exceeds the tolerance on the validation data",
        where="search",
        remedy="raise tolerance, edit fewer layers, or take another rule",
    )
