"""Runs of the study `decoupled_st`: cells of temperatures, training of many nets at once, and the choice of pairs.

Nets of one seed start from the same weights and see the same batches; only temperatures and rates differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge.base.seeds import derive
from expunge.numerics.estimators import DecoupledST, DecoupledSTGS, Pathwise
from expunge.studies.decoupled_st.images import Images, images
from expunge.studies.decoupled_st.nets import (
    Autoencoder,
    BinaryNet,
    CategoricalVAE,
    DiscreteNet,
    GateNet,
    Readings,
    Weights,
)

Cell = tuple[float, float]
"""Temperatures of the forward and of the backward pass."""
FINE = tuple(round(2 ** (step / 2), 3) for step in range(-3, 4))
"""From 0.354 to 2.828 by factors of the square root of 2: the diagonal, which is searched more finely than the rest."""
COARSE = FINE[::2]
"""The grid of 4 x 4, by factors of 2."""
GRID: tuple[Cell, ...] = tuple((forward, backward) for forward in COARSE for backward in COARSE)
DIAGONAL: tuple[Cell, ...] = tuple((temperature, temperature) for temperature in FINE)
CELLS: tuple[Cell, ...] = (*GRID, *(cell for cell in DIAGONAL if cell not in GRID))
RATE_SEEDS, CELL_SEEDS = (100, 101), (102, 103)
"""Seeds on which each cell's rate, and then the two pairs of temperatures, are chosen; none is reported."""
BATCH = 64


@dataclass(frozen=True)
class Experiment:
    """A task with one version of the estimator."""

    make: Callable[[Images, int], DiscreteNet]
    """Called with images and hidden width."""
    images: str
    version: type[DecoupledSTGS] | type[DecoupledST]
    rates: tuple[float, float]
    """Candidates of Adam's learning rate."""
    width: int = 1
    """Hidden width, as a multiple of the study's."""

    def net(self, hidden: int, count: int, tests: int) -> DiscreteNet:
        """The net for its images."""
        return self.make(images(self.images, count, tests), self.width * hidden)


RATES = (2e-3, 1e-2)
EXPERIMENTS: Mapping[str, Experiment] = {
    "autoencoder": Experiment(Autoencoder, "digits", DecoupledSTGS, RATES),
    "VAE": Experiment(CategoricalVAE, "digits", DecoupledSTGS, RATES),
    "autoencoder, version 2": Experiment(Autoencoder, "digits", DecoupledST, RATES),
    "VAE, version 2": Experiment(CategoricalVAE, "digits", DecoupledST, RATES),
    "VAE on sprites": Experiment(CategoricalVAE, "sprites", DecoupledSTGS, RATES),
    "VAE on clothing": Experiment(CategoricalVAE, "clothing", DecoupledSTGS, RATES),
    "binary net": Experiment(BinaryNet, "digits", DecoupledST, RATES),
    "logic gates": Experiment(GateNet, "digits", DecoupledST, (2e-2, 1e-1), 8),
}
PRIMARY = ("autoencoder", "VAE")


def column(values: Sequence[float], dimensions: int) -> Tensor:
    """One number a net, to broadcast over tensors `[nets, ...]` of so many dimensions."""
    return torch.tensor(values).view(-1, *[1] * (dimensions - 1))


def choice_of(version: type[DecoupledSTGS] | type[DecoupledST], cells: Sequence[Cell], dimensions: int) -> Pathwise:
    """The estimator of nets side by side, for logits of so many dimensions."""
    forward, backward = zip(*cells, strict=True)
    return version(column(forward, dimensions), column(backward, dimensions))


class SideBySide:
    """Nets in training, each with its own temperatures and its own rate of Adam.

    Args:
        net: The architecture.
        cells: Temperatures of each net.
        rates: Learning rate of each net.
        seed: Decides initial weights, batches and choices.
        version: The estimator.
    """

    def __init__(
        self,
        net: DiscreteNet,
        cells: Sequence[Cell],
        rates: Sequence[float],
        seed: int,
        version: type[DecoupledSTGS] | type[DecoupledST],
    ) -> None:
        start = net.weights(torch.Generator().manual_seed(derive(seed, "weights")))
        self.net, self.version = net, version
        self.fixed = {name: value.expand(len(cells), *value.shape) for name, value in start.items() if _fixed(value)}
        trained = {name: value for name, value in start.items() if not _fixed(value)}
        self.shapes = {name: value.shape for name, value in trained.items()}
        flat = torch.cat([value.flatten() for value in trained.values()])
        self.flat = flat.repeat(len(cells), 1).requires_grad_()
        self.rates = column(rates, 2)
        self.moments = torch.zeros_like(flat).repeat(2, len(cells), 1)
        self.batches, self.noise = (torch.Generator().manual_seed(derive(seed, name)) for name in ("batches", "noise"))
        self.taken = 0
        self.at(cells)

    def at(self, cells: Sequence[Cell]) -> None:
        """Go on with other temperatures."""
        # Bits of categories have four dimensions with their net: net, example, bit, category; gates have three.
        self.choice = choice_of(self.version, cells, 3 if isinstance(self.net, GateNet) else 4)

    @property
    def weights(self) -> Weights:
        """The weights by name, `[nets, ...]`."""
        parts = self.flat.split([shape.numel() for shape in self.shapes.values()], dim=1)
        pairs = zip(self.shapes.items(), parts, strict=True)
        return {name: part.unflatten(1, shape) for (name, shape), part in pairs} | self.fixed

    def train(self, steps: int) -> None:
        """Take steps of Adam, by the averages 0.9 and 0.99 and without a schedule."""
        for _ in range(steps):
            rows = torch.randint(0, len(self.net.images.train), (BATCH,), generator=self.batches)
            (slope,) = torch.autograd.grad(
                self.net.losses(self.weights, rows, self.choice, self.noise).sum(), self.flat
            )
            self.taken += 1
            with torch.no_grad():
                mean, square = self.moments
                mean.lerp_(slope, 0.1)
                square.lerp_(slope.square(), 0.01)
                scale = (square / (1 - 0.99**self.taken)).sqrt_().add_(1e-8)
                self.flat -= self.rates * (mean / (1 - 0.9**self.taken)) / scale

    def read(self) -> Readings:
        """Numbers of each net on test images."""
        with torch.no_grad():
            return self.net.read(self.weights, self.choice, self.noise)


def _fixed(value: Tensor) -> bool:
    return not value.is_floating_point()


@dataclass(frozen=True)
class Sizes:
    """How large nets are, and how long they train."""

    hidden: int
    images: int
    tests: int
    steps: int


def final(name: str, cells: Sequence[Cell], rates: Sequence[float], seed: int, scale: Sizes) -> Readings:
    """Train nets of an experiment and read them."""
    experiment = EXPERIMENTS[name]
    net = experiment.net(scale.hidden, scale.images, scale.tests)
    nets = SideBySide(net, cells, rates, seed, experiment.version)
    nets.train(scale.steps)
    return nets.read()


def choose(name: str, scale: Sizes, rate_seeds: Sequence[int], cell_seeds: Sequence[int]) -> dict[str, Any]:
    """Choose each cell's rate and then the best pair of equal and of different temperatures, on different seeds.

    Returns:
        `rates`, one for each of `CELLS`; `diagonal` and `off`, two cells; `scatter`, the standard deviation of the loss
        over seeds at one temperature, over the cells of the diagonal.
    """
    rates = EXPERIMENTS[name].rates
    many = [rate for rate in rates for _ in CELLS]
    by_rate = [_losses(name, [*CELLS, *CELLS], many, seed, scale).reshape(2, -1) for seed in rate_seeds]
    best = np.mean(by_rate, axis=0).argmin(0)
    chosen = [rates[index] for index in best]
    by_cell = [_losses(name, CELLS, chosen, seed, scale) for seed in cell_seeds]
    means = dict(zip(CELLS, np.mean(by_cell, axis=0), strict=True))
    same = [losses[best, np.arange(len(CELLS))] for losses in by_rate]
    diagonal = [CELLS.index(cell) for cell in DIAGONAL]
    every = np.array([*same, *by_cell])[:, diagonal]
    return {
        "rates": chosen,
        "diagonal": min(DIAGONAL, key=lambda cell: means[cell]),
        "off": min((cell for cell in GRID if cell[0] != cell[1]), key=lambda cell: means[cell]),
        "scatter": float(np.sqrt(every.var(axis=0, ddof=1).mean())),
    }


def _losses(name: str, cells: Sequence[Cell], rates: Sequence[float], seed: int, scale: Sizes) -> np.ndarray[Any, Any]:
    losses = final(name, cells, rates, seed, scale)["loss"].double().numpy()
    # A net that diverged is worse than any other.
    return np.where(np.isfinite(losses), losses, 1e9)
