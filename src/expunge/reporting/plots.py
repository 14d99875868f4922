"""Attack curves, and losses on the path to the original: one small panel per model, all on the same scale."""

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
from safetensors.numpy import load_file

from expunge.base.manifest import Manifest
from expunge.evidence.intervals import student
from expunge.evidence.table import Table
from expunge.reporting.svg import COMPACT, INK, METHOD, ORIGINAL, REFERENCE, SECOND, SMALL, Drawing, drawing, panel
from expunge.reporting.text import shown

Floats = npt.NDArray[np.float64]


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

    def told(self, at: float, unit: str) -> str:
        """The mean at a place, or nothing where it was not measured."""
        place = np.flatnonzero(self.at == at)
        return f"{shown(float(self.mean()[place[0]]), unit)}{' %' if unit == 'share' else ''}" if place.size else ""


def attack_curves(folder: Path, manifest: Manifest, model: str, attack: str) -> Curves | None:
    """What a model's curves under an attack say of the share that is known; none where there are none."""
    found = []
    for stage in manifest.stages:
        file = stage.files.get("curves")
        if file and (stage.model, stage.attack) == (model, attack):
            arrays = load_file(folder / file.path)
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
        method: Its curves.
        reference: The retrained models' curves under the same attack.
        original: What the original knows, drawn as a level.
        span: Lowest and highest value of all panels, so that they compare.
        second: The same method and its reference in another run, drawn over it.
        names: What the two runs are called where values are read out.
        compact: One of many, so that it is drawn small.

    Returns:
        The drawing.
    """
    figure, axes = panel(COMPACT if compact else SMALL)
    other, other_reference = second or (None, None)
    for known, colour, dash in ((other_reference, SECOND, (1, 1.5)), (reference, REFERENCE, (4, 2))):
        if known is not None:
            axes.fill_between(known.at, *known.band(), color=colour, alpha=0.22, linewidth=0)
            axes.plot(known.at, known.mean(), color=colour, linewidth=1.4, linestyle=(0, dash))
    if original is not None:
        axes.axhline(original, color=ORIGINAL, linewidth=1.1, linestyle=(0, (1, 1.5)))
    _lines(axes, method, METHOD, "-")
    if other is not None:
        # Dashed, so that one that lies on the other leaves both in sight.
        _lines(axes, other, SECOND, (0, (5, 4)))
    # At least ten points high, or the noise of a level line would fill the panel.
    low, high = min(span[0], 0.9), max(span[1], span[0] + 0.1)
    pad = 0.06 * (high - low)
    axes.set_ylim(max(low - pad, -0.02), min(high + pad, 1.02))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.set_xlabel("steps of the attack", labelpad=2)
    told = {names[0]: method, names[1]: other, "retrained": reference}
    if other_reference is not None:
        told |= {f"retrained {names[0]}": told.pop("retrained"), f"retrained {names[1]}": other_reference}
    stops = [
        (float(at), float(value), _told(f"step {at:.0f}", float(at), told, "share"))
        for at, value in zip(method.at, method.mean(), strict=True)
    ]
    return drawing(figure, axes, f"Share of the forget set that is known along the attack: {title}", stops)


def path_panel(title: str, losses: dict[str, Curves], *, compact: bool = False) -> Drawing:
    """The loss on the straight line from the original to a model.

    Args:
        title: The model's name.
        losses: Split -> loss on the path, for each seed; `forget` and `retain` have colours of their own.
        compact: One of many, so that it is drawn small.

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
        (float(at), float(value), _told(f"{100 * at:.0f} % of the way", float(at), losses, "nats"))
        for at, value in zip(first_curves.at, first_curves.mean(), strict=True)
    ]
    return drawing(figure, axes, f"Loss on the straight line from the original: {title}", stops)


def _lines(axes: Axes, curves: Curves, colour: str, dash: Any) -> None:
    for line in curves.values if len(curves.values) > 1 else ():
        axes.plot(curves.at, line, color=colour, linewidth=0.7, alpha=0.45)
    axes.plot(curves.at, curves.mean(), color=colour, linewidth=1.9, linestyle=dash)


def _told(place: str, at: float, curves: Mapping[str, Curves | None], unit: str) -> str:
    values = {name: known.told(at, unit) for name, known in curves.items() if known is not None}
    return f"{place}: " + ", ".join(f"{name} {value}" for name, value in values.items() if value)


def span_of(curves: Sequence[Curves], levels: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest finite value of all curves and levels, 0 to 1 where there are none."""
    found: list[Any] = [c.values.ravel() for c in curves] + [np.asarray(levels, dtype=np.float64)]
    values = np.concatenate(found)
    values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
