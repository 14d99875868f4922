"""Draws a study's figures from their data: points and lines in the plane, and values over a grid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from expunge.reporting.svg import (
    INK,
    LARGE,
    LETTER,
    METHOD,
    ORIGINAL,
    POINTS,
    QUIET,
    REFERENCE,
    SECOND,
    Drawing,
    Stop,
    drawing,
    label_points,
    panel,
)

LOOKS = [(METHOD, "o", "-"), (REFERENCE, "s", "--"), (SECOND, "^", "-."), (ORIGINAL, "D", ":"), (INK, "v", "-")]
"""Colour, marker and dash of each series in turn, so that series can be distinguished without colour."""
MARKS = 20
"""Approximate number of markers on a line."""
FEW = 24
"""Most points that are labelled on the drawing; with more points, labels only appear under the pointer."""


def draw(figure: Mapping[str, Any]) -> Drawing:
    """The drawing of a chart or a grid, as `Figure.as_json` describes them."""
    return _grid(figure) if figure["figure"] == "grid" else _chart(figure)


def _chart(figure: Mapping[str, Any]) -> Drawing:
    drawn, axes = panel(LARGE, 0.6)
    if figure["log_x"]:
        axes.set_xscale("log")
    stops: list[Stop] = []
    for index, series in enumerate(figure["series"]):
        points = [p for p in _points(series) if math.isfinite(p["x"]) and math.isfinite(p["y"])]
        _series(axes, points, figure["kind"], *LOOKS[index % len(LOOKS)])
        stops += [(p["x"], p["y"], _read_out(series["name"], p, figure)) for p in points]
    if not figure["log_x"]:
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.margins(x=0.06)
    axes.set_xlabel(figure["x"])
    axes.set_ylabel(figure["y"])
    axes.autoscale_view()  # Matplotlib does it lazily, but labels are placed by the positions of the points
    words = [(p["x"], p["y"], p["label"]) for s in figure["series"] for p in _points(s) if p["label"]]
    if words and len(words) <= FEW:
        label_points(axes, [w for w in words if math.isfinite(w[0]) and math.isfinite(w[1])])
    return drawing(drawn, axes, figure["title"], stops, "xy")


def _series(axes: Axes, points: list[dict[str, Any]], kind: str, colour: str, marker: str, dash: str) -> None:
    x, y = [p["x"] for p in points], [p["y"] for p in points]
    style = dash if kind == "lines" else "none"
    # On a line of many points the markers would overlap and hide the dashes.
    every = max(len(x) // MARKS, 1) if kind == "lines" else 1
    axes.plot(x, y, color=colour, marker=marker, markersize=4, linestyle=style, linewidth=1.6, markevery=every)
    known = [p for p in points if math.isfinite(p["low"])]
    if known:
        axes.vlines([p["x"] for p in known], [p["low"] for p in known], [p["high"] for p in known], colour, alpha=0.5)


def _points(series: Mapping[str, Any]) -> list[dict[str, Any]]:
    count = len(series["x"])
    lows, highs = (list(series[end]) or [math.nan] * count for end in ("low", "high"))
    labels = list(series["labels"]) or [""] * count
    columns = zip(series["x"], series["y"], lows, highs, labels, strict=True)
    return [
        {"x": float(x), "y": float(y), "low": float(low), "high": float(high), "label": label}
        for x, y, low, high, label in columns
    ]


def _read_out(name: str, point: Mapping[str, Any], figure: Mapping[str, Any]) -> str:
    spread = f" [{point['low']:.3g}, {point['high']:.3g}]" if math.isfinite(point["low"]) else ""
    what = ", ".join(word for word in (name, point["label"]) if word)
    return f"{what}: {figure['x']} {point['x']:.3g}, {figure['y']} {point['y']:.3g}{spread}"


def _grid(figure: Mapping[str, Any]) -> Drawing:
    values = [[float(value) for value in row] for row in figure["values"]]
    left = 0.35 + max(map(len, figure["rows"])) * LETTER / POINTS
    drawn, axes = panel((left + 0.62 * len(figure["columns"]) + 0.2, 0.6 + 0.3 * len(values)), left)
    axes.grid(visible=False)
    span = max(figure["high"] - figure["low"], 1e-12)
    stops: list[Stop] = []
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if not math.isfinite(value):
                continue
            share = min(max((value - figure["low"]) / span, 0.0), 1.0)
            box = Rectangle((j - 0.48, i - 0.46), 0.96, 0.92, color=METHOD, alpha=0.08 + 0.62 * share)
            axes.add_patch(box)
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=INK)
            stops.append((j, i, f"{figure['rows'][i]}, {figure['columns'][j]}: {value:.3f}"))
    axes.set_xlim(-0.5, len(figure["columns"]) - 0.5)
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_xticks(range(len(figure["columns"])), figure["columns"])
    axes.set_yticks(range(len(values)), figure["rows"])
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_xlabel(figure["x"], color=QUIET)
    axes.set_ylabel(figure["y"], color=QUIET)
    return drawing(drawn, axes, figure["title"], stops, "xy")
