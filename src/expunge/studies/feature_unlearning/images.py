"""A network of torch modules, trained by the library's loop on real images, with the monitor attached.

Inputs are the leading principal components of Fashion-MNIST, whitened: real data, not Gaussian. Targets are
z + c_2 h_2(z) along a random direction; kappa is 2 c_2 for an activation with sigma_2 / sigma_1 = 1/2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.base.seeds import derive
from expunge.core.data import Batch
from expunge.data.fashion_mnist import FashionMNIST
from expunge.studies.feature_unlearning.setup import quadratic
from expunge.train.loop import fit
from expunge.train.monitors import FeatureLossMonitor, watch

COMPONENTS, UNSEEN = 20, 2000
UNITS, STEP, RATIO, BATCH = 128, 0.05, 0.2, 200
"""Settings of training: units, first layer's step size (times N times the gradient), epsilon, examples per step."""


class Quadratic(nn.Module):
    """h_1 + h_2 / 2 of each entry."""

    def forward(self, z: Tensor) -> Tensor:
        """Of any shape."""
        return quadratic(z)


def watched(second: float, images: int, epochs: int, seed: int) -> FeatureLossMonitor:
    """Train on images, with a monitor that has the true direction.

    Args:
        second: c_2 of the targets.
        images: Number of training images; the loss is measured on other images.
        epochs: Passes over the training images.
        seed: Decides direction, weights and batches.
    """
    generator = torch.Generator().manual_seed(seed)
    x = whitened(images + UNSEEN)
    direction = F.normalize(torch.randn(COMPONENTS, generator=generator), dim=0)
    z = x @ direction
    z = z / z.std()
    y = z + second * (z * z - 1) / math.sqrt(2)
    model = network(direction, generator)
    first, last = model.parameters()
    monitor = FeatureLossMonitor(_squared_loss, [(x[images:], y[images:])], direction, every=50)
    steps = [{"params": [first], "lr": STEP * UNITS}, {"params": [last], "lr": STEP * RATIO / UNITS}]
    order = torch.Generator().manual_seed(derive(seed, "batches"))
    monitor(0, model)
    fit(
        [first, last],
        lambda batch: _squared_loss(model, (batch.inputs, batch.targets)),
        _batches(x[:images], y[:images], epochs, order),
        torch.optim.SGD(steps),
        on_step=watch(model, monitor),
    )
    return monitor


def _batches(x: Tensor, y: Tensor, epochs: int, generator: torch.Generator) -> Iterator[Batch]:
    for _ in range(epochs):
        for ids in torch.randperm(len(x), generator=generator).split(BATCH):
            yield Batch(x[ids], y[ids], ids)


def whitened(count: int) -> Tensor:
    """Leading principal components of `count` images, each with mean 0 and variance 1, `[count, COMPONENTS]`."""
    data = FashionMNIST(train=count)()
    rows = data.inputs[:count].flatten(1).double()
    rows = rows - rows.mean(0)
    values, vectors = torch.linalg.eigh(rows.T @ rows / count)
    components: Tensor = (rows @ vectors[:, -COMPONENTS:]) * values[-COMPONENTS:].rsqrt()
    return components.float()


def network(direction: Tensor, generator: torch.Generator) -> nn.Sequential:
    """A network with first-layer rows of length 1, orthogonal to the direction, and second-layer weights 1 / N."""
    model = nn.Sequential(
        nn.Linear(COMPONENTS, UNITS, bias=False), Quadratic(), nn.Linear(UNITS, 1, bias=False), nn.Flatten(0)
    )
    rows = torch.randn(UNITS, COMPONENTS, generator=generator)
    first, last = model.parameters()
    with torch.no_grad():
        first.copy_(F.normalize(rows - (rows @ direction)[:, None] * direction, dim=1))
        last.fill_(1 / UNITS)
    return model


def _squared_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    squares: Tensor = (model(batch[0]) - batch[1]).square()
    return squares.mean() / 2
