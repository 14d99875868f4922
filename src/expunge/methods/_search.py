"""The search for the strongest edit that validation data allow."""

from __future__ import annotations

from collections.abc import Callable

from expunge.base.errors import RunError

GRID = (0.999, 0.997, 0.99, 0.98, 0.97, 0.95, 0.93, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)
"""Kept shares to try, from the gentlest."""
HALVINGS = 4
"""Of the interval between the last share within the tolerance and the first one outside."""


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
        raise RunError(
            "even the gentlest edit exceeds the tolerance on the validation data",
            where="search",
            remedy="raise tolerance, edit fewer layers, or take another rule",
        )
    return good
