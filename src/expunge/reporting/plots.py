"""Small panels as SVG text for the page: attack curves and losses on the path to the original, one panel per model.

Drawn in stand-in colours that become CSS variables, so that one drawing is readable in light, in dark and in print;
text stays text. The same data gives the same bytes.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from safetensors.numpy import load_file

from expunge.evidence.intervals import student
from expunge.evidence.table import Table

Floats = npt.NDArray[np.float64]
COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--quiet)",
    "#030303": "var(--line)",
    "#040404": "var(--reference)",
    "#050505": "var(--method)",
    "#060606": "var(--original)",
}
INK, QUIET, LINE, REFERENCE, METHOD, ORIGINAL = COLOURS
SIZE = (3.6, 2.35)
"""Inches; the page scales it to the width of its column."""
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


@dataclass(frozen=True)
class Curves:
    """One model's values along something, for every seed."""

    at: Floats
    """Where, `[points]`: steps of the attack, or the place on a path."""
    values: Floats
    """`[seeds, points]`."""

    def mean(self) -> Floats:
        """Over seeds, `[points]`."""
        means: Floats = self.values.mean(axis=0)
        return means

    def band(self) -> tuple[Floats, Floats]:
        """The 90 % interval over seeds at each point; with one seed there is none and both ends are the mean."""
        if len(self.values) < 2:
            return self.mean(), self.mean()
        ends = np.array([student(column)[1:] for column in self.values.T])
        return ends[:, 0], ends[:, 1]


def attack_curves(folder: Path, manifest: Mapping[str, Any], model: str, attack: str) -> Curves | None:
    """What a model's curves under an attack say of the share that is known; none where there are none."""
    found = []
    for stage in manifest["stages"]:
        held = stage["files"].get("curves")
        if held and (stage["model"], stage["attack"]) == (model, attack):
            arrays = load_file(folder / held["path"])
            found.append((arrays["steps"].astype(np.float64), arrays["values"].astype(np.float64).mean(axis=1)))
    return _joined(found)


def path_curves(table: Table, model: str, split: str) -> Curves | None:
    """The losses on the path from the original, from 0 to 1; none where the path audit did not run."""
    scores = [table.get(model, seed, None, ("barrier", split)) for seed in table.seeds]
    return _joined([(np.linspace(0, 1, s.values.size), s.values) for s in scores if s is not None])


def _joined(found: Sequence[tuple[Floats, Floats]]) -> Curves | None:
    """Seeds put together on the places that all of them have: an attack's steps may differ with its retain set."""
    if not found:
        return None
    at = reduce(np.intersect1d, [places for places, _ in found])
    return Curves(at, np.array([series[np.isin(places, at)] for places, series in found]))


def attack_panel(
    title: str, method: Curves | None, reference: Curves | None, original: float | None, span: tuple[float, float]
) -> str:
    """One model's attack curve over the reference's band.

    Args:
        title: The model's name and the attack's, for screen readers.
        method: Its curves; none for a panel that shows the reference alone.
        reference: The retrained models' curves under the same attack.
        original: What the original knows, drawn as a level.
        span: Lowest and highest value of all panels, so that they compare.

    Returns:
        An SVG element.
    """
    figure, axes = _panel()
    if reference is not None:
        axes.fill_between(reference.at, *reference.band(), color=REFERENCE, alpha=0.22, linewidth=0)
        axes.plot(reference.at, reference.mean(), color=REFERENCE, linewidth=1.4, linestyle=(0, (4, 2)))
    if original is not None:
        axes.axhline(original, color=ORIGINAL, linewidth=1.1, linestyle=(0, (1, 1.5)))
    if method is not None:
        for line in method.values if len(method.values) > 1 else ():
            axes.plot(method.at, line, color=METHOD, linewidth=0.7, alpha=0.45)
        axes.plot(method.at, method.mean(), color=METHOD, linewidth=1.9)
    # At least ten points high, or the noise of a level line would fill the panel.
    low, high = min(span[0], 0.9), max(span[1], span[0] + 0.1)
    pad = 0.06 * (high - low)
    axes.set_ylim(max(low - pad, -0.02), min(high + pad, 1.02))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.set_xlabel("steps of the attack")
    return _svg(figure, f"Share of the forget set that is known along the attack: {title}")


def path_panel(title: str, losses: dict[str, Curves]) -> str:
    """The loss on the straight line from the original to a model.

    Args:
        title: The model's name.
        losses: Split -> loss on the path, for each seed; `forget` and `retain` have colours of their own.

    Returns:
        An SVG element.
    """
    figure, axes = _panel()
    for split, curves in losses.items():
        colour, dash = (METHOD, "-") if split == "forget" else (INK, (0, (4, 2)))
        for line in curves.values if len(curves.values) > 1 else ():
            axes.plot(curves.at, line, color=colour, linewidth=0.7, alpha=0.35)
        axes.plot(curves.at, curves.mean(), color=colour, linewidth=1.7, linestyle=dash)
    axes.set_ylim(bottom=0)
    axes.set_xticks([0, 1], ["original", "this model"])
    first, last = axes.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")
    return _svg(figure, f"Loss on the straight line from the original: {title}")


def _panel() -> tuple[Figure, Axes]:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE)
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0.135, 0.185, 0.845, 0.775))
    axes.patch.set_alpha(0)
    figure.patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=LINE, linewidth=0.5, alpha=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.margins(x=0.01)
    return figure, axes


def _svg(figure: Figure, label: str) -> str:
    """The figure as an element to stand inside HTML: no prologue, no namespaces, ids that are unique on the page."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata=NO_METADATA)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    head, _, body = text.partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL).replace("xlink:href", "href")
    for colour, variable in COLOURS.items():
        body = body.replace(colour, variable)
    prefix = re.sub(r"\W", "_", f"{label} ")
    body = re.sub(r'(?<=\bid=")|(?<=href="#)|(?<=url\(#)', prefix, body)
    return f'<svg {box[0] if box else ""} role="img" aria-label="{html.escape(label)}">{body}'


def span_of(curves: Sequence[Curves], levels: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest finite value of all curves and levels, 0 to 1 where there are none."""
    found: list[Any] = [c.values.ravel() for c in curves] + [np.asarray(levels, dtype=np.float64)]
    values = np.concatenate(found)
    values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
