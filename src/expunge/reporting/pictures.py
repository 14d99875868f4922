"""Pictures of single models: histograms of the loss, and maps of a classifier's answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator

from expunge.base.manifest import read_json
from expunge.evidence.table import ORIGINAL, REFERENCE
from expunge.reporting.record import NAMES, Json, Run
from expunge.reporting.svg import COMPACT, INK, METHOD, SMALL, Drawing, drawing, panel
from expunge.reporting.svg import REFERENCE as BLUE

Floats = npt.NDArray[np.float64]
BINS, LEAST = 24, 1e-3
"""Bins of a histogram; losses below the least value are drawn there, because the axis is logarithmic."""
LOOKS = {"retained": (BLUE, "o", 5.0), "unseen": (INK, "x", 7.0), "forget": (METHOD, "o", 9.0)}
"""Colour, marker and size of the points of each set, in the order in which they are drawn."""
MOST_MAPS = 6
"""Methods whose maps are on the page; each has a map before and after attacks."""


def histograms(run: Run, methods: Sequence[str], *, compact: bool) -> list[Json]:
    """For each model the losses of forget examples, of unseen ones, and of a retrained model's forget examples."""
    forget = {model: _losses(run, model, "forget") for model in (ORIGINAL, REFERENCE, *methods)}
    unseen = {model: _losses(run, model, "test") for model in forget}
    known = {model: values for model, values in forget.items() if values is not None}
    if not known:
        return []
    every = np.concatenate([*known.values(), *(values for values in unseen.values() if values is not None)])
    edges = np.geomspace(LEAST, max(float(every.max()), 10 * LEAST), BINS + 1)
    unit = next(m.scores.unit for m in run.table.measured if m.scores.metric == "loss")
    panels = []
    for model in [m for m in known if m != REFERENCE]:
        lines = {"forget": known[model], "unseen": unseen[model], "retrained": known.get(REFERENCE)}
        shown = {name: values for name, values in lines.items() if values is not None}
        named = NAMES.get(model, model)
        medians = ", ".join(f"{name} {np.median(values):.3g}" for name, values in shown.items())
        picture = _histogram(f"Losses of {named}", shown, edges, unit, compact=compact)
        panels.append({"model": named, "drawing": picture, "medians": medians})
    return panels


def _losses(run: Run, model: str, split: str) -> Floats | None:
    scores = [run.table.get(model, seed, None, ("loss", split)) for seed in run.table.seeds]
    values = [entry.values for entry in scores if entry is not None]
    if not values:
        return None
    together: Floats = np.concatenate(values)
    return together[np.isfinite(together)] if np.isfinite(together).any() else None


def _histogram(title: str, lines: Mapping[str, Floats], edges: Floats, unit: str, *, compact: bool) -> Drawing:
    figure, axes = panel(COMPACT if compact else SMALL)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    looks = {"forget": (METHOD, "-"), "unseen": (INK, (0, (4, 2))), "retrained": (BLUE, (0, (1, 1.5)))}
    heights = {name: np.histogram(np.clip(v, edges[0], edges[-1]), edges)[0] / v.size for name, v in lines.items()}
    for name, values in heights.items():
        colour, dash = looks[name]
        axes.stairs(100 * values, edges, color=colour, linewidth=1.6, linestyle=dash)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"loss ({unit})", labelpad=1)
    axes.set_ylabel("% of examples" if not compact else "", labelpad=1)
    stops = [
        (
            float(np.sqrt(edges[i] * edges[i + 1])),
            100 * max(float(values[i]) for values in heights.values()),
            f"loss {edges[i]:.3g} to {edges[i + 1]:.3g}: "
            + ", ".join(f"{name} {100 * values[i]:.0f} %" for name, values in heights.items()),
        )
        for i in range(BINS)
    ]
    return drawing(figure, axes, title, stops)


def maps(run: Run, methods: Sequence[str]) -> list[Json]:
    """For the first methods a map of their answers before and after each attack; empty in records without them."""
    file = run.manifest.file("examples")
    if file is None or not (run.folder / file.path).is_file():
        return []
    gallery = read_json(run.folder, file.path, file.sha256)
    cloud = gallery.get("map")
    if not cloud:
        return []
    places = {
        (entry["model"], entry["attack"]): np.asarray(points, dtype=np.float64)
        for entry, points in zip(gallery["models"], cloud["places"], strict=True)
    }
    shown = [ORIGINAL, REFERENCE, *methods[:MOST_MAPS]]
    kept = {key: points for key, points in places.items() if key[0] in shown and (key[1] is None or key[0] in methods)}
    every = np.concatenate(list(kept.values()))
    span = np.quantile(every, [0.005, 0.995], axis=0)
    order = sorted(kept, key=lambda key: (shown.index(key[0]), key[1] is not None))
    return [{"model": _titled(*key), "drawing": _map(_titled(*key), kept[key], cloud["sets"], span)} for key in order]


def _titled(model: str, attack: str | None) -> str:
    name = NAMES.get(model, model).replace(" (reference)", "")
    return name if attack is None else f"{name} after {attack}"


def _map(title: str, places: Floats, sets: Mapping[str, int], span: Floats) -> Drawing:
    figure, axes = panel(COMPACT, left=0.1)
    ends = np.cumsum([0, *sets.values()])
    rows = {name: places[start:end] for name, start, end in zip(sets, ends, ends[1:], strict=False)}
    for name, (colour, marker, size) in LOOKS.items():
        points = np.clip(rows.get(name, places[:0]), span[0], span[1])
        axes.plot(
            points[:, 0], points[:, 1], marker, color=colour, markersize=size**0.5, markeredgewidth=0.8, alpha=0.75
        )
    _bare(axes, span)
    return drawing(figure, axes, f"Map of the answers of {title}", [])


def _bare(axes: Axes, span: Floats) -> None:
    """No ticks: directions of the map have no unit."""
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    (left, low), (right, high) = span
    axes.set_xlim(left - 0.05 * (right - left), right + 0.05 * (right - left))
    axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
