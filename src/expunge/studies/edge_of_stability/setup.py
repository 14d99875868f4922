"""Runs of the study `edge_of_stability`: chains without biases, full batches of images, and readings during training.

Squared error is half the squared distance, as a mean over examples. Targets are random classes, which take long to fit,
so training has time to hover at the edge. Everything is float32 on one thread, with plain gradient descent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise, repeat
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.base.errors import RunError
from expunge.core.seeding import forked
from expunge.data.fashion_mnist import FashionMNIST
from expunge.train.loop import fit
from expunge.train.monitors import SharpnessMonitor

CLASSES, SIDE = 10, 14
NETS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "ReLU": nn.ReLU,
    "ELU": nn.ELU,
    "linear": nn.Identity,
}
LAYERS = 5


class Examples(NamedTuple):
    """Images `[n, 196]` and their targets `[n, 10]`, one-hot."""

    inputs: Tensor
    targets: Tensor

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(self.inputs)

    def at(self, ids: Tensor) -> Examples:
        """Some of the examples."""
        return Examples(self.inputs[ids], self.targets[ids])


Loss = Callable[[nn.Module, Examples], Tensor]


def squared(model: nn.Module, batch: Examples) -> Tensor:
    """Half the squared distance to the target, a mean over examples."""
    distance: Tensor = (model(batch.inputs) - batch.targets).square().sum(1)
    return distance.mean() / 2


def cross_entropy(model: nn.Module, batch: Examples) -> Tensor:
    """Cross-entropy of the softmax, a mean over examples."""
    return F.cross_entropy(model(batch.inputs), batch.targets)


def examples(count: int, generator: torch.Generator) -> Examples:
    """Images of 14 x 14 pixels with random classes; all entries together have mean 0 and variance 1."""
    images = F.avg_pool2d(FashionMNIST(train=count)().inputs[:count], 2).flatten(1)
    images = (images - images.mean()) / images.std()
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return Examples(images, F.one_hot(labels, CLASSES).float())


def network(activation: str, width: int, seed: int, layers: int = LAYERS) -> nn.Sequential:
    """A chain of linear layers without biases, initialised as PyTorch does."""
    with forked(seed):
        widths = [SIDE * SIDE, *[width] * (layers - 1)]
        modules: list[nn.Module] = []
        for before, after in pairwise(widths):
            modules += [nn.Linear(before, after, bias=False), NETS[activation]()]
        return nn.Sequential(*modules, nn.Linear(widths[-1], CLASSES, bias=False))


@dataclass
class Track:
    """Readings along a trajectory, in order of the steps; ratios are sharpness times step size / 2."""

    steps: list[int] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    """Squared norm of the output layer."""
    dense: list[bool] = field(default_factory=list)
    """Whether the reading belongs to the window in which every step is read."""
    diverged: bool = False
    """Whether training ended because the loss was not finite."""
    agreeing: list[bool] = field(default_factory=list)
    """For every step: whether the norm grew exactly if the residual points against the outputs."""

    @property
    def crossed(self) -> int | None:
        """Index of the first reading above the edge; `None` if there is none."""
        return next((at for at, ratio in enumerate(self.ratios) if ratio >= 1), None)


@dataclass
class Reader:
    """Reads sharpness, norm and residual: at intervals, and after the first crossing at every step of a window."""

    model: nn.Sequential
    batch: Examples
    monitor: SharpnessMonitor
    window: int
    track: Track = field(default_factory=Track)
    _left: int = -1
    _before: tuple[float, float] | None = None

    def __call__(self, step: int, _: float = 0.0) -> None:
        """Read after a step."""
        norm = float(self._last.weight.detach().square().sum())
        if self._before is not None:
            # Before the step, the sign of <D, F> predicted the direction of the norm.
            self.track.agreeing.append((norm > self._before[0]) == (self._before[1] < 0))
        self._before = norm, self._against()
        dense = self._left > 0
        self.monitor.every = 1 if dense else self.coarse
        count = len(self.monitor.steps)
        self.monitor(step, self.model)
        if len(self.monitor.steps) > count and math.isfinite(self.monitor.sharpness[-1]):
            ratio = self.monitor.sharpness[-1] / self.monitor.edges[-1]
            self._note(step, ratio, norm, dense)
            self._left = self.window if self._left < 0 and ratio >= 1 else self._left
        self._left -= dense

    def __post_init__(self) -> None:
        self.coarse = self.monitor.every

    @property
    def _last(self) -> nn.Linear:
        last = self.model[-1]
        assert isinstance(last, nn.Linear)
        return last

    def _against(self) -> float:
        with torch.no_grad():
            outputs = self.model(self.batch.inputs)
            return float(((outputs - self.batch.targets) * outputs).sum())

    def _note(self, step: int, ratio: float, norm: float, dense: bool) -> None:
        track = self.track
        track.steps.append(step)
        track.ratios.append(ratio)
        track.norms.append(norm)
        track.dense.append(dense)


def descend(
    model: nn.Sequential, batch: Examples, rate: float, steps: int, *, every: int, window: int = 0, loss: Loss = squared
) -> Track:
    """The readings of full-batch gradient descent; if training diverges, `diverged` is set."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    reader = Reader(model, batch, SharpnessMonitor(loss, [batch], optimizer, every=every), window)
    reader(0)
    try:
        fit(list(model.parameters()), lambda item: loss(model, item), repeat(batch, steps), optimizer, on_step=reader)
    except RunError:
        reader.track.diverged = True
    return reader.track


def minibatches(batch: Examples, size: int, steps: int, generator: torch.Generator) -> Iterator[Examples]:
    """Batches for `steps` steps, in a new order each epoch."""
    taken = 0
    while taken < steps:
        for ids in torch.randperm(batch.size, generator=generator).split(size)[: steps - taken]:
            yield batch.at(ids)
            taken += 1


def hovering(track: Track) -> float:
    """Median ratio from the first crossing on; without one, of the second half; infinite if training diverged."""
    if track.diverged:
        return math.inf
    ratios = np.array(track.ratios)
    start = len(ratios) // 2 if track.crossed is None else track.crossed
    return float(np.median(ratios[start:]))


def upward(track: Track) -> int:
    """Number of times that the sharpness rose through the edge."""
    above = np.array(track.ratios) >= 1
    return int((above[1:] & ~above[:-1]).sum())


def increments(track: Track, over: int) -> dict[str, Any]:
    """Increments over some steps within the dense window, with the phase of each, 1 to 4.

    Single steps oscillate with period two along the sharpest direction, which says nothing about a phase.

    Returns:
        `sharpness`, `norm` and `phase`, arrays of equal length.
    """
    at = np.flatnonzero(track.dense)
    ratios, norms = np.array(track.ratios)[at], np.array(track.norms)[at]
    kernel = np.ones(over) / over
    ratios, norms = (
        np.convolve(series, kernel, "valid") if len(series) >= over else series[:0] for series in (ratios, norms)
    )
    sharper, grown = (series[over:] - series[:-over] for series in (ratios, norms))
    middle = ratios[over // 2 : over // 2 + len(sharper)]
    phase = np.where(middle < 1, np.where(sharper > 0, 1, 4), np.where(sharper > 0, 2, 3))
    return {"sharpness": sharper, "norm": grown, "phase": phase}
