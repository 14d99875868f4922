"""Figures of a study as data, so that the page can draw them again without measuring again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Series:
    """A named list of points."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    """Lower ends of the 90 % intervals of `y`, or nothing."""
    high: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    """A label per point, or nothing."""


@dataclass(frozen=True)
class Chart:
    """Points or lines in the plane."""

    title: str
    x: str
    """Label of the axis, with its unit."""
    y: str
    series: tuple[Series, ...]
    kind: Literal["points", "lines"] = "lines"
    log_x: bool = False

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"figure": "chart", **asdict(self)}


@dataclass(frozen=True)
class Grid:
    """A table of values, drawn as shaded cells."""

    title: str
    x: str
    y: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    """`[rows, columns]`."""
    low: float = 0.0
    """Value of the palest cell."""
    high: float = 1.0

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"figure": "grid", **asdict(self)}


Figure = Chart | Grid
