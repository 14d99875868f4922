"""Drawings for the page: figures as SVG text in the page's colours, with the values that a pointer reads out.

Matplotlib draws in placeholder colours, which are then replaced by CSS variables, so that one drawing is readable in
light mode, in dark mode and in print. Text stays text. The same data gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from expunge.reporting.slim import slim

COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--quiet)",
    "#030303": "var(--line)",
    "#040404": "var(--reference)",
    "#050505": "var(--method)",
    "#060606": "var(--original)",
    "#070707": "var(--second)",
}
INK, QUIET, LINE, REFERENCE, METHOD, ORIGINAL, SECOND = COLOURS
SMALL, LARGE, COMPACT = (3.6, 2.35), (4.7, 3.5), (2.6, 1.75)
"""Sizes in inches; the page scales drawings to the width of their column."""
POINTS = 72
"""Points per inch; a drawing's own coordinates are points."""
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "expunge",
    "font.size": 8,
    "axes.edgecolor": LINE,
    "axes.labelcolor": QUIET,
    "axes.titlecolor": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": QUIET,
    "text.color": INK,
}
NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
LETTER, ROW = 5.0, 10.0
"""Width of a letter and height of a line of labels, in points."""

_NUMBER = re.compile(r"-?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?")

Stop = tuple[float, float, str]
"""A position in data coordinates, and the text that is read out there."""


@dataclass(frozen=True)
class Drawing:
    """An SVG element in pieces, with the positions at which a pointer or the arrow keys read out values."""

    label: str
    """Description for screen readers."""
    name: str
    """Unique on the page."""
    view: str
    """The `viewBox` attribute."""
    elements: list[str]
    """SVG elements in drawing order; elements that drawings of a page share are written once, see `slim.Pieces`."""
    clips: dict[str, str]
    """Id -> clipping rectangle."""
    chart: dict[str, Any]
    """`along`: whether the nearest stop is found along `x` or in the plane, `xy`. `box`: top and bottom of the axes.
    `stops`: `[x, y, text]` in the drawing's own coordinates; if there is a `form`, the text holds its numbers."""


def panel(size: tuple[float, float] = SMALL, left: float = 0.485) -> tuple[Figure, Axes]:
    """An empty figure in the page's style, with `left` inches to the left of its axes."""
    left, bottom, ticks = left / size[0], 0.435 / size[1], 5 if size[0] > COMPACT[0] else 3
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, dpi=POINTS)
        FigureCanvasSVG(figure)
        axes = figure.add_axes((left, bottom, 0.98 - left, 0.96 - bottom))
    axes.patch.set_alpha(0)
    figure.patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=LINE, linewidth=0.5, alpha=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.margins(x=0.01)
    return figure, axes


def drawing(figure: Figure, axes: Axes, label: str, stops: Sequence[Stop], along: Literal["x", "xy"] = "x") -> Drawing:
    """The finished figure.

    Args:
        figure: The figure with its final limits.
        axes: The figure's only axes.
        label: Description for screen readers; unique on the page.
        stops: Positions and texts that can be read out, in the order of the arrow keys.
        along: Whether the stop nearest to a pointer is found along `x` or in the plane, `xy`.

    Returns:
        The figure in pieces for HTML.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata=NO_METADATA)
    text = buffer.getvalue()
    for colour, variable in COLOURS.items():
        text = text.replace(colour, variable)
    elements, clips = slim(text)
    width, height = (f"{POINTS * inches:.1f}".removesuffix(".0") for inches in figure.get_size_inches())
    # Labels such as `lr.1` and `lr-1` differ only in letters that a name may not have.
    name = re.sub(r"\W", "_", label) + "_" + hashlib.sha256(label.encode()).hexdigest()[:6]
    return Drawing(
        label, name, f"0 0 {width} {height}", elements, clips, {"along": along} | _places(figure, axes, stops)
    )


def _places(figure: Figure, axes: Axes, stops: Sequence[Stop]) -> dict[str, Any]:
    height = float(figure.get_figheight()) * POINTS
    lowest, highest = (axes.transAxes.transform((0, end))[1] for end in (0, 1))
    places = []
    for x, y, text in stops:
        across, up = axes.transData.transform((x, y))
        if not (math.isfinite(across) and math.isfinite(up)):
            continue
        places.append((round(float(across), 1), round(height - float(up), 1), text))
    box = [round(height - float(highest), 1), round(height - float(lowest), 1)]
    return {"box": box, **_folded(places)}


def _folded(stops: list[tuple[float, float, str]]) -> dict[str, Any]:
    """If all texts differ in their numbers only, their words once as `form`, with `{}` for each number."""
    forms = {_NUMBER.sub("{}", text) for _, _, text in stops}
    if len(stops) < 2 or len(forms) != 1 or any("{" in text for _, _, text in stops):
        return {"stops": stops}
    return {"form": forms.pop(), "stops": [(x, y, " ".join(_NUMBER.findall(text))) for x, y, text in stops]}


def label_points(axes: Axes, points: Sequence[tuple[float, float, str]], free: float = 6.0) -> None:
    """Write a name beside each point, where it covers the least of other names and points.

    Args:
        axes: The axes with their final limits.
        points: x and y in data coordinates, and the name.
        free: Half the width of the square that each marker takes, in points.
    """
    box = axes.get_window_extent()
    centres = [axes.transData.transform((x, y)) for x, y, _ in points]
    taken = [(cx - free, cy - free, cx + free, cy + free) for cx, cy in centres]
    for (cx, cy), (_, _, text) in zip(centres, points, strict=True):
        width = LETTER * len(text)

        def cost(place: tuple[float, float], at: tuple[float, float] = (cx, cy), width: float = width) -> float:
            left, bottom = at[0] + place[0] - (width if place[0] < 0 else 0), at[1] + place[1] - ROW / 2
            mine = (left, bottom, left + width, bottom + ROW)
            outside = max(box.x0 - mine[0], 0) + max(mine[2] - box.x1 - 4, 0) + max(mine[3] - box.y1 - 8, 0)
            outside += max(box.y0 - mine[1], 0)
            return sum(_overlap(mine, box_) for box_ in taken) + 20 * float(outside) + 0.01 * abs(place[1])

        # The right side before the left, and the nearest height first.
        heights = (0, 9, -9, 18, -18, 27, -27, 36, -36)
        dx, dy = min(product((free + 2, -free - 2), heights), key=cost)
        left = cx + dx - (width if dx < 0 else 0)
        taken.append((left, cy + dy - ROW / 2, left + width, cy + dy + ROW / 2))
        side: Literal["left", "right"] = "left" if dx > 0 else "right"
        line = {"arrowstyle": "-", "color": QUIET, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2} if dy else None
        place: Any = {"xycoords": "figure pixels", "textcoords": "offset points", "arrowprops": line}
        axes.annotate(text, (cx, cy), (dx, dy), ha=side, va="center", color=INK, zorder=7, **place)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
