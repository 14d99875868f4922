"""A map of weight space: the distances between original, retrained and unlearned models, drawn in a plane.

Distances are L2 over parameters, read tensor by tensor from the models in the run's folder, without running statistics.
Classical multidimensional scaling (Torgerson, 1952) places the models so that their distances in the plane approximate
those in weight space. The stress is the relative error of this approximation.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from expunge.base.errors import RunError
from expunge.base.manifest import FileRecord
from expunge.base.reading import path_inside
from expunge.evidence.table import ORIGINAL, REFERENCE
from expunge.reporting.record import Run
from expunge.reporting.svg import (
    INK,
    LARGE,
    LINE,
    METHOD,
    Drawing,
    drawing,
    label_points,
    panel,
)
from expunge.reporting.svg import (
    REFERENCE as BLUE,
)
from expunge.reporting.text import shown

Floats = npt.NDArray[np.float64]
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Last words of the names of tensors that are not parameters."""


@dataclass(frozen=True)
class Map:
    """Models with their distances, and their places in the plane."""

    names: list[str]
    distances: Floats
    """`[models, models]`, the mean over seeds."""
    places: Floats
    """`[models, 2]`: the original at the origin, the retrained models to its right."""
    seeds: int

    @property
    def stress(self) -> float:
        """Root mean square error of the distances in the plane, divided by the root mean square distance."""
        upper = np.triu_indices(len(self.names), 1)
        errors = self.distances[upper] - _between(self.places)[upper]
        size = float(np.sum(self.distances[upper] ** 2))
        return math.sqrt(float(np.sum(errors**2)) / size) if size else 0.0


def map_of(run: Run) -> Map | str:
    """Place a run's models.

    Returns:
        The map, or a sentence that says why there is none.

    Raises:
        RunError: A model file is not a valid safetensors file.
    """
    seeds = [_files(run, seed) for seed in run.table.seeds]
    if run.table.about_one_model:
        # There are one original, one unlearned model and many references, and each gets a place of its own.
        merged = {
            f"retrained {i}" if name == REFERENCE else name: p for i, f in enumerate(seeds) for name, p in f.items()
        }
        seeds = [merged]
    names = list(dict.fromkeys(name for files in seeds for name in files))
    present = [all(os.path.lexists(run.folder / file.path) for file in files.values()) for files in seeds]
    complete = [files for files, all_ in zip(seeds, present, strict=True) if all_ and len(files) == len(names)]
    if len(names) < 3 or not complete:
        return "The models are not in this folder, so there is no map of them."
    try:
        opened = [[path_inside(run.folder, files[n].path, files[n].sha256) for n in names] for files in complete]
        matrices = [distances(paths) for paths in opened]
    except ValueError as error:
        return f"There is no map of the models: {error}."
    mean = np.mean(matrices, axis=0)
    if not np.isfinite(mean).all():
        return "There is no map of the models: one of them has weights that are not finite."
    toward = next((i for i, name in enumerate(names) if name.startswith((REFERENCE, "retrained"))), 1)
    return Map(names, mean, _turned(classical_scaling(mean), names.index(ORIGINAL), toward), len(complete))


def _files(run: Run, seed: int) -> dict[str, FileRecord]:
    order = {model: i for i, model in enumerate(run.table.models)}
    stages = [s for s in run.manifest.stages if s.seed == seed and s.attack is None and "models" in s.files]
    stages.sort(key=lambda stage: order[stage.model])
    return {stage.model: stage.files["models"] for stage in stages}


def distances(paths: Sequence[Path]) -> Floats:
    """L2 distances between stored models; only one tensor of each model is in memory at a time.

    Args:
        paths: Safetensors files with the same tensors.

    Returns:
        `[models, models]`.

    Raises:
        RunError: A file is damaged.
        ValueError: The models differ in their parameters, or a tensor has a number format that numpy lacks.
    """
    opened: list[Any] = []
    for path in paths:
        try:
            opened.append(safe_open(path, framework="numpy"))
        except SafetensorError as error:
            raise RunError(f"no model could be read ({error})", where=str(path), remedy="run it again") from None
    names = [name for name in sorted(opened[0].keys()) if name.rpartition(".")[2] not in STATISTICS]
    if any(set(names) - set(file.keys()) for file in opened):
        raise ValueError("they have different parameters")
    squares = np.zeros((len(paths), len(paths)))
    for name in names:
        squares += _squares([_tensor(file, name) for file in opened])
    return np.sqrt(squares)


def _tensor(file: Any, name: str) -> Floats:
    """A parameter as one row; a complex number is its two parts."""
    try:
        values = np.asarray(file.get_tensor(name)).ravel()
        if np.iscomplexobj(values):
            return values.astype(np.complex128).view(np.float64)
        return values.astype(np.float64)
    except (TypeError, AttributeError, SafetensorError):
        raise ValueError("numpy lacks the number format of their weights") from None


def _squares(vectors: Sequence[Floats]) -> Floats:
    if len({vector.shape for vector in vectors}) > 1:
        raise ValueError("they have parameters of different shapes")
    squares = np.zeros((len(vectors), len(vectors)))
    for i, a in enumerate(vectors):
        for j, b in enumerate(vectors[:i]):
            squares[i, j] = squares[j, i] = float(np.sum((a - b) ** 2))
    return squares


def classical_scaling(between: Floats) -> Floats:
    """Places in a plane, `[n, 2]`, whose distances approximate `between`, `[n, n]`; exact if a plane allows it."""
    centre = np.eye(len(between)) - 1 / len(between)
    values, vectors = np.linalg.eigh(-0.5 * centre @ between**2 @ centre)
    places: Floats = vectors[:, :-3:-1] * np.sqrt(np.maximum(values[:-3:-1], 0))
    return places


def _turned(places: Floats, origin: int, toward: int) -> Floats:
    """The map with `origin` at 0 and `toward` to its right, reflected so that the place farthest aside is above."""
    moved = places - places[origin]
    x, y = moved[toward]
    length = math.hypot(x, y)
    if length:
        moved = moved @ np.array([[x, -y], [y, x]]) / length
    sides: Floats = moved[:, 1]
    reflected: Floats = moved * np.array([1, -1 if sides[np.argmax(np.abs(sides))] < 0 else 1])
    return reflected


def _between(places: Floats) -> Floats:
    between: Floats = np.linalg.norm(places[:, None] - places[None], axis=2)
    return between


def map_panel(map_: Map) -> Drawing:
    """The drawing of a map; each model's distances to original and retrained are read out."""
    figure, axes = panel(LARGE)
    styles: Mapping[str, tuple[str, str, float]] = {ORIGINAL: (INK, "X", 60)}
    points = []
    for name, (x, y) in zip(map_.names, map_.places.tolist(), strict=True):
        retrained = name.startswith((REFERENCE, "retrained"))
        colour, marker, area = (BLUE, "D", 45) if retrained else styles.get(name, (METHOD, "o", 50))
        if name != ORIGINAL:
            axes.plot([0, x], [0, y], color=LINE, linewidth=0.8, zorder=1)
        axes.scatter([x], [y], area, colour, marker=marker, linewidths=0, zorder=5 if name == ORIGINAL else 4)
        points.append((x, y, "retrained" if name == REFERENCE else name))
    axes.margins(0.14)
    axes.set_aspect("equal", adjustable="datalim")
    axes.autoscale_view()
    axes.apply_aspect()
    axes.grid(axis="x", color=LINE, linewidth=0.5, alpha=0.6)
    axes.set_xlabel("L2 distance in weight space, as far as a plane can show it")
    label_points(axes, points, free=7)
    stops = [(x, y, _read_out(map_, i)) for i, (x, y, _) in enumerate(points)]
    return drawing(figure, axes, "Map of the models in weight space", stops, along="xy")


def _read_out(map_: Map, index: int) -> str:
    names = {ORIGINAL: "the original", REFERENCE: "retrained"}
    fixed = [i for i, name in enumerate(map_.names) if name in names and i != index]
    distances_ = [f"{shown(float(map_.distances[index, i]), '')} from {names[map_.names[i]]}" for i in fixed]
    return f"{names.get(map_.names[index], map_.names[index])}: {', '.join(distances_)}"
