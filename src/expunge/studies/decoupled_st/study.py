"""Discrete nets with one temperature in the forward and another in the backward pass (2410.13331, both versions).

For each experiment two pairs of temperatures are chosen: the best equal pair of seven, and the best of the twelve
different pairs of a 4 x 4 grid. Each cell's learning rate is chosen on two seeds and the pairs on two others, because
the best of many cells beats the best of few by chance. Then all cells run on fresh seeds, which alone are reported.

Small-scale re-implementation: images of 8 x 8 to 14 x 14, one hidden layer, a code of 24 bits or of 6 choices among 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from expunge.base.part import Count
from expunge.evidence.claim import Claim, Measured
from expunge.evidence.figure import Chart, Figure, Grid, Series
from expunge.studies.decoupled_st import setup
from expunge.studies.decoupled_st.fidelity import EQUAL, NAME, diagnoses, online, trained
from expunge.studies.decoupled_st.setup import CELLS, COARSE, DIAGONAL, GRID, Cell
from expunge.study.claims import read_claims
from expunge.study.read import array, spearman
from expunge.study.study import Preset, Study, Work

ByCell = Mapping[Cell, float]


@dataclass(frozen=True)
class DecoupledSTStudy(Study):
    """Decoupled temperatures against equal ones, and the fidelity of their gradients."""

    cite: ClassVar[tuple[str, ...]] = (
        "shah2024decoupled", "bengio2013stochastic", "huh2023straightening", "jang2017gumbel", "kool2019buy",
        "liu2023reinmax", "paulus2021rao",
    )  # fmt: skip
    paper: ClassVar[str] = "Decoupled Straight-Through, 2024"
    claims: ClassVar[tuple[Claim, ...]] = read_claims(__file__)
    presets: ClassVar[Mapping[str, Preset]] = {
        "quick": Preset(
            (0,), {"hidden": 16, "images": 200, "tests": 100, "steps": 10, "every": False, "samples": 16, "looks": 2}
        ),
        "cpu": Preset(tuple(range(8))),
        "long": Preset(tuple(range(8)), {"hidden": 128, "steps": 6000, "samples": 4096}),
        "paper": Preset((0,), lacks="CIFAR-10, SVHN, MNIST, and architectures and rates, which could not be read"),
    }

    hidden: Count = 64
    """Hidden units."""
    images: Count = 1200
    """Training images of each data set."""
    tests: Count = 500
    """Test images."""
    steps: Count = 1000
    """Steps of training, with 64 images each."""
    every: bool = True
    """Whether to run the secondary experiments."""
    samples: Count = 1024
    """Gradients in each comparison with the exact one."""
    looks: Count = 20
    """How often the backward temperature is chosen again, online."""

    @property
    def scale(self) -> setup.Sizes:
        """The size of each run."""
        return setup.Sizes(self.hidden, self.images, self.tests, self.steps)

    @property
    def names(self) -> tuple[str, ...]:
        """The experiments of this scale."""
        return tuple(setup.EXPERIMENTS) if self.every else setup.PRIMARY

    def prepare(self, seeds: Sequence[int], work: Work) -> Mapping[str, Any]:
        """Rates and pairs of temperatures, chosen on other seeds."""
        torch.set_num_threads(1)
        seeds_of = (setup.RATE_SEEDS, setup.CELL_SEEDS) if self.every else (setup.RATE_SEEDS[:1], setup.CELL_SEEDS[:1])
        return {name: setup.choose(name, self.scale, *seeds_of) for name in self.names}

    def measure(self, seed: int, work: Work, basis: Mapping[str, Any]) -> Measured:
        """Train every cell of every experiment, and compare gradients of the VAE."""
        runs = {}
        for name in self.names:
            readings = setup.final(name, CELLS, basis[name]["rates"], seed, self.scale)
            runs[name] = {what: dict(zip(CELLS, values.tolist(), strict=True)) for what, values in readings.items()}
        losses = {name: run["loss"] for name, run in runs.items()}
        gains = {name: gain(losses[name], *pairs(basis[name])) for name in self.names}
        measured: dict[str, Any] = {
            f"loss {name}": [by_cell[cell] for cell in CELLS] for name, by_cell in losses.items()
        }
        measured |= {f"{what} VAE": [runs[NAME][what][c] for c in CELLS] for what in ("reconstruction", "generation")}
        measured |= array("off_diagonal_wins", {name: gains[name] for name in setup.PRIMARY})
        measured |= array("diagonal_varies", {n: variation(losses[n]) / basis[n]["scatter"] for n in setup.PRIMARY})
        measured |= array("decoupled_loses_less", {n: sensitivity(losses[n], *pairs(basis[n])) for n in setup.PRIMARY})
        sides = {what: side(runs[NAME][what]) for what in ("reconstruction", "generation")}
        measured |= array(
            "opposite_sides", {"reconstruction": sides["reconstruction"], "generation": -sides["generation"]}
        )
        return measured | self._others(losses, gains) | self._gradients(seed, basis[NAME], losses[NAME])

    def _others(self, losses: Mapping[str, ByCell], gains: Mapping[str, float]) -> dict[str, Any]:
        if not self.every:
            return {}
        measured: dict[str, Any] = array("other_images", {n: gains[f"VAE on {n}"] for n in ("sprites", "clothing")})
        measured |= array("second_version_wins", {n: gains[f"{n}, version 2"] for n in setup.PRIMARY})
        return measured | {
            "binary_net_wins": gains["binary net"],
            "binary_net_side": side(losses["binary net"]),
            "logic_gates_win": gains["logic gates"],
            "logic_gates_side": side(losses["logic gates"]),
        }

    def _gradients(self, seed: int, chosen: Mapping[str, Any], losses: ByCell) -> dict[str, Any]:
        rate = chosen["rates"][CELLS.index(EQUAL)]
        nets = trained(seed, rate, self.scale)
        backward, forward = [(1.0, t) for t in COARSE], [(t, 1.0) for t in reversed(COARSE)]
        found = diagnoses(nets, [*GRID, *backward, *forward], self.samples, seed)
        measured: dict[str, Any] = {}
        sizes = {
            "variance": {cell: math.log10(of.variance) for cell, of in found.items()},
            # Below its floor a bias is not resolved.
            "bias": {cell: math.log10(max(of.bias, of.floor)) for cell, of in found.items()},
        }
        for what, size in sizes.items():
            measured |= array(f"{what}_falls_with_backward", {f"backward {cell[1]:g}": size[cell] for cell in backward})
            measured |= array(f"{what}_rises_with_forward", {f"forward {cell[0]:g}": size[cell] for cell in forward})
        gaps = {f"backward {cell[1]:g}": math.log10(found[cell].gap or math.nan) for cell in backward}
        measured |= array("gap_falls_with_backward", gaps)
        cosines = [found[cell].cosine for cell in GRID]
        measured["cosine_ranks_cells"] = spearman(cosines, [-losses[cell] for cell in GRID])
        loss, temperatures = online(seed, rate, self.scale, self.looks, max(self.samples // 8, 2))
        diagonal, _ = pairs(chosen)
        measured["online_wins"] = (losses[diagonal] - loss) / losses[diagonal]
        relative = [min(found[cell].relative_bias, 1e3) for cell in GRID]
        return measured | {"cosine": cosines, "relative bias": relative, "online": temperatures}

    def figures(self, seeds: Mapping[int, Measured], basis: Mapping[str, Any]) -> list[Figure]:
        """Each experiment's losses over the grid, those along the diagonal, and the fidelity of gradients."""
        names = tuple(f"{temperature:g}" for temperature in COARSE)

        def mean(key: str) -> dict[Cell, float]:
            values = np.mean([measured[key] for measured in seeds.values()], axis=0)
            return dict(zip(CELLS, map(float, values), strict=len(values) == len(CELLS)))

        def grid(title: str, by_cell: ByCell) -> Grid:
            rows = tuple(tuple(by_cell[forward, backward] for backward in COARSE) for forward in COARSE)
            low, high = (float(end(by_cell[cell] for cell in GRID)) for end in (min, max))
            return Grid(title, "backward temperature", "forward temperature", names, names, rows, low, high)

        figures: list[Figure] = [grid(f"Test loss: {name}", mean(f"loss {name}")) for name in basis]
        figures += [grid(f"VAE: {what}", mean(f"{what} VAE")) for what in ("reconstruction", "generation")]
        figures += [grid(f"VAE at (1, 1): {what}", mean(what)) for what in ("cosine", "relative bias")]
        x = tuple(temperature for temperature, _ in DIAGONAL)
        lines = []
        for name in basis:
            losses = mean(f"loss {name}")
            best = min(losses[cell] for cell in DIAGONAL)
            lines.append(Series(name, x, tuple(losses[cell] / best for cell in DIAGONAL)))
        return [*figures, Chart("Along the diagonal", "temperature", "loss, of the best", tuple(lines), log_x=True)]


def pairs(chosen: Mapping[str, Any]) -> tuple[Cell, Cell]:
    """The chosen equal pair and the chosen different pair; stored results spell them as lists."""
    diagonal, off = ((float(cell[0]), float(cell[1])) for cell in (chosen["diagonal"], chosen["off"]))
    return diagonal, off


def gain(losses: ByCell, diagonal: Cell, off: Cell) -> float:
    """What different temperatures save, as a share of the loss with equal ones."""
    return (losses[diagonal] - losses[off]) / losses[diagonal]


def variation(losses: ByCell) -> float:
    """Standard deviation of the loss along the diagonal."""
    return float(np.std([losses[cell] for cell in DIAGONAL], ddof=1))


def sensitivity(losses: ByCell, diagonal: Cell, off: Cell) -> float:
    """Excess loss by a factor of 2 away from the chosen equal pair, minus that from the chosen different pair."""

    def excess(centre: Cell, neighbours: list[Cell]) -> float:
        return float(np.mean([losses[cell] for cell in neighbours])) / losses[centre] - 1

    place = DIAGONAL.index(diagonal)
    along = [DIAGONAL[at] for at in (place - 2, place + 2) if 0 <= at < len(DIAGONAL)]
    f, b = COARSE.index(off[0]), COARSE.index(off[1])
    around = [(f - 1, b), (f + 1, b), (f, b - 1), (f, b + 1)]
    size = range(len(COARSE))
    return excess(diagonal, along) - excess(off, [(COARSE[i], COARSE[j]) for i, j in around if i in size and j in size])


def side(losses: ByCell) -> float:
    """How much lower losses are where the forward temperature is the smaller one, over mirrored cells, as a share."""
    mirrored = [(losses[b, f], losses[f, b]) for f, b in GRID if f < b]
    return float(np.mean([(above - below) / (above + below) * 2 for above, below in mirrored]))
