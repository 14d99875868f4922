"""What a study shows besides its claims, as data: drawn by the page, and drawn again without measuring again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Series:
    """Points under one name."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    """Lower ends of the 90 % intervals of `y`, or nothing."""
    high: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    """A word per point, or nothing."""


@dataclass(frozen=True)
class Chart:
    """Points or lines in the plane."""

    title: str
    x: str
    """What the axis shows, with its unit."""
    y: str
    series: tuple[Series, ...]
    kind: Literal["points", "lines"] = "lines"
    log_x: bool = False

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"figure": "chart", **asdict(self)}


@dataclass(frozen=True)
class Grid:
    """A value per cell of a plane."""

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
