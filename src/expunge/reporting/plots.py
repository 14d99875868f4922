"""Draws attack curves, and losses on the path from the original: one small panel per model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter
from safetensors.numpy import load

from expunge.base.manifest import Manifest
from expunge.base.reading import read_inside
from expunge.evidence.intervals import student
from expunge.evidence.table import Table
from expunge.reporting.svg import COMPACT, INK, METHOD, ORIGINAL, REFERENCE, SECOND, SMALL, Drawing, drawing, panel
from expunge.reporting.text import shown

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curves:
    """One model's values along an axis, for every seed."""

    at: Floats
    """Positions on the axis, `[points]`: steps of the attack, or the share of the path from 0 to 1."""
    values: Floats
    """`[seeds, points]`."""

    def mean(self) -> Floats:
        """Mean over seeds, `[points]`."""
        means: Floats = self.values.mean(axis=0)
        return means

    def band(self) -> tuple[Floats, Floats]:
        """The 90 % interval over seeds at each point, two `[points]`; with a single seed both ends are the mean."""
        if len(self.values) < 2:
            return self.mean(), self.mean()
        ends = np.array([student(column)[1:] for column in self.values.T])
        return ends[:, 0], ends[:, 1]

    def text_at(self, at: float, unit: str) -> str:
        """The mean at a position as text, empty if it was not measured there."""
        place = np.flatnonzero(self.at == at)
        return f"{shown(float(self.mean()[place[0]]), unit)}{' %' if unit == 'share' else ''}" if place.size else ""


def attack_curves(folder: Path, manifest: Manifest, model: str, attack: str) -> Curves | None:
    """A model's curves of the known share of the forget set under an attack; none if the record holds no curves."""
    series = []
    for stage in manifest.stages:
        file = stage.files.get("curves")
        if file and (stage.model, stage.attack) == (model, attack):
            arrays = load(read_inside(folder, file.path, file.sha256))
            series.append((arrays["steps"].astype(np.float64), arrays["values"].astype(np.float64).mean(axis=1)))
    return _joined(series)


def path_curves(table: Table, model: str, split: str) -> Curves | None:
    """The losses on the path from the original (0) to the model (1); none if the path audit did not run."""
    scores = [table.get(model, seed, None, ("barrier", split)) for seed in table.seeds]
    return _joined([(np.linspace(0, 1, s.values.size), s.values) for s in scores if s is not None])


def _joined(seeds: Sequence[tuple[Floats, Floats]]) -> Curves | None:
    """Seeds joined on their common positions; an attack's steps may differ between seeds with its retain set."""
    if not seeds:
        return None
    at = reduce(np.intersect1d, [positions for positions, _ in seeds])
    return Curves(at, np.array([values[np.isin(positions, at)] for positions, values in seeds]))


def attack_panel(
    title: str,
    method: Curves,
    reference: Curves | None,
    original: float | None,
    span: tuple[float, float],
    second: tuple[Curves, Curves | None] | None = None,
    names: tuple[str, str] = ("this", ""),
    *,
    compact: bool = False,
) -> Drawing:
    """One model's attack curve over the reference's band.

    Args:
        title: The model's name and the attack's, for screen readers.
        method: The method's curves.
        reference: The retrained models' curves under the same attack.
        original: The original's known share before any attack, drawn as a level line.
        span: Lowest and highest value of all panels, so that panels have the same scale.
        second: The same method and its reference in another run, drawn on top.
        names: Names of the two runs in the values that are read out.
        compact: Draw small, as one of many panels.

    Returns:
        The drawing.
    """
    figure, axes = panel(COMPACT if compact else SMALL)
    second_method, second_reference = second or (None, None)
    for curves, colour, dash in ((second_reference, SECOND, (1, 1.5)), (reference, REFERENCE, (4, 2))):
        if curves is not None:
            axes.fill_between(curves.at, *curves.band(), color=colour, alpha=0.22, linewidth=0)
            axes.plot(curves.at, curves.mean(), color=colour, linewidth=1.4, linestyle=(0, dash))
    if original is not None:
        axes.axhline(original, color=ORIGINAL, linewidth=1.1, linestyle=(0, (1, 1.5)))
    _lines(axes, method, METHOD, "-")
    if second_method is not None:
        # Dashed, so that both lines are visible if they coincide.
        _lines(axes, second_method, SECOND, (0, (5, 4)))
    # The scale spans at least ten points, or the noise of a level line would fill the panel.
    low, high = min(span[0], 0.9), max(span[1], span[0] + 0.1)
    pad = 0.06 * (high - low)
    axes.set_ylim(max(low - pad, -0.02), min(high + pad, 1.02))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.set_xlabel("steps of the attack", labelpad=2)
    named = {names[0]: method, names[1]: second_method, "retrained": reference}
    if second_reference is not None:
        named |= {f"retrained {names[0]}": named.pop("retrained"), f"retrained {names[1]}": second_reference}
    stops = [
        (float(at), float(value), _read_out(f"step {at:.0f}", float(at), named, "share"))
        for at, value in zip(method.at, method.mean(), strict=True)
    ]
    return drawing(figure, axes, f"Share of the forget set that is known along the attack: {title}", stops)


def path_panel(title: str, losses: dict[str, Curves], *, compact: bool = False) -> Drawing:
    """The loss on the straight line from the original to a model.

    Args:
        title: The model's name.
        losses: Split (`forget` or `retain`) -> loss on the path, for each seed.
        compact: Draw small, as one of many panels.

    Returns:
        The drawing.
    """
    figure, axes = panel(COMPACT if compact else SMALL)
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
    first_curves = next(iter(losses.values()))
    stops = [
        (float(at), float(value), _read_out(f"{100 * at:.0f} % of the way", float(at), losses, "nats"))
        for at, value in zip(first_curves.at, first_curves.mean(), strict=True)
    ]
    return drawing(figure, axes, f"Loss on the straight line from the original: {title}", stops)


def _lines(axes: Axes, curves: Curves, colour: str, dash: Any) -> None:
    for line in curves.values if len(curves.values) > 1 else ():
        axes.plot(curves.at, line, color=colour, linewidth=0.7, alpha=0.45)
    axes.plot(curves.at, curves.mean(), color=colour, linewidth=1.9, linestyle=dash)


def _read_out(place: str, at: float, curves: Mapping[str, Curves | None], unit: str) -> str:
    values = {name: entry.text_at(at, unit) for name, entry in curves.items() if entry is not None}
    return f"{place}: " + ", ".join(f"{name} {value}" for name, value in values.items() if value)


def span_of(curves: Sequence[Curves], levels: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest finite value of all curves and levels; 0 and 1 if there are none."""
    arrays: list[Any] = [c.values.ravel() for c in curves] + [np.asarray(levels, dtype=np.float64)]
    values = np.concatenate(arrays)
    values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
