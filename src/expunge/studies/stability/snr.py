"""How a two-layer ReLU network, trained on signal and noise, leaves its minimum under descent and ascent.

An input has two patches, y mu and noise orthogonal to mu. The output is f = F_+ - F_-, with F_j the mean over filters
of the ReLU of both patches, and a fixed second layer (Cao et al. 2022, Kou et al. 2023, as recalled). The loss is half
of the squared error, so curvature remains at interpolation: at zero residual H_i is the outer product of the gradient
of f with itself. SNR is |mu| / (sigma_p sqrt(d)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from expunge.numerics.coherence import coherence, sharpnesses, similarities
from expunge.numerics.linearised import Draw, Update, of_gram
from expunge.numerics.stability import mean_radius

SNRS = (0.05, 0.2, 0.4, 0.8)
MIX, EXIT, NUDGE = 0.3, 0.05, 1e-3
"""Weight of the ascent; forget loss that counts as having left the minimum; relative size of the first perturbation."""
FIXED, NORMALISED = 0.02, 0.5
"""Step sizes: a fixed one for all networks, and one in units of 1 / lambda_1 of the retain set."""
TRIED = (0.25, 0.5, 1.0, 1.9)
"""Candidates of the tuned step size, in the same units."""


@dataclass(frozen=True)
class Scale:
    """Sizes of data and network, and limits on steps."""

    count: int
    forget: int
    inputs: int
    filters: int = 8
    training: int = 20_000
    most: int = 5000
    residual: float = 1e-8
    """Training stops at this loss, for equal residuals."""


class Net(NamedTuple):
    """Filters `[2, m, d]` of both signs."""

    filters: Tensor

    def outputs(self, x: Tensor) -> Tensor:
        """F `[n]` of patches `[n, 2, d]`."""
        seen = torch.einsum("jmd,npd->njmp", self.filters, x).relu().sum(3).mean(2)
        return seen[:, 0] - seen[:, 1]

    def slopes(self, x: Tensor) -> Tensor:
        """Gradients of f by the filters, `[n, 2 m d]`."""
        on = (torch.einsum("jmd,npd->njmp", self.filters, x) > 0).to(x)
        slopes = torch.einsum("njmp,npd->njmd", on, x) / self.filters.shape[1]
        return torch.stack([slopes[:, 0], -slopes[:, 1]], 1).flatten(1)


@dataclass(frozen=True)
class NetworkResult:
    """The measurements of one network."""

    coherence: float
    sharpness: float
    """lambda_1 of the retain set's mean curvature."""
    residual: float
    steps: dict[str, int]
    """Steps until the forget loss exceeds `EXIT`, by step rule."""
    damage: dict[str, float]
    """Retained loss at that step."""
    rate: float
    """Predicted growth per step at the normalised step size."""


def sample(mu: float, noise: float, scale: Scale, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Patches `[n, 2, d]` and labels `[n]`, in double precision."""
    labels = torch.randint(0, 2, (scale.count,), generator=generator).double() * 2 - 1
    x = noise * torch.randn(scale.count, 2, scale.inputs, generator=generator, dtype=torch.float64)
    x[:, 1, 0] = 0
    x[:, 0] = 0
    x[:, 0, 0] = mu * labels
    return x, labels


def look(mu: float, noise: float, scale: Scale, generator: torch.Generator) -> NetworkResult:
    """Train on signal and noise, then unlearn by every step rule."""
    x, y = sample(mu, noise, scale, generator)
    first = torch.randn(2, scale.filters, scale.inputs, generator=generator, dtype=torch.float64)
    net, residual = _trained(Net(0.01 * first / noise / math.sqrt(scale.inputs)), x, y, scale)
    slopes, retained = net.slopes(x), scale.count - scale.forget
    gram = slopes @ slopes.T
    sharpness = float(torch.linalg.eigvalsh(gram[:retained, :retained])[-1]) / retained
    push = torch.randn(net.filters.shape, generator=generator, dtype=torch.float64)
    start = Net(net.filters + NUDGE * net.filters.norm() * push / push.norm())
    rules = {"normalised": NORMALISED / sharpness, "fixed": FIXED}
    rules |= {f"tried {factor:g}": factor / sharpness for factor in TRIED}
    runs = {rule: _leave(start, x, y, retained, step, scale.most) for rule, step in rules.items()}
    tried = [runs.pop(f"tried {factor:g}") for factor in TRIED]
    runs["tuned"] = min(tried)
    update = Update(
        rules["normalised"], MIX, Draw(retained, retained), Draw(scale.count - retained, scale.count - retained)
    )
    return NetworkResult(
        coherence(similarities(gram), sharpnesses(gram)),
        sharpness,
        residual,
        {rule: run[0] for rule, run in runs.items()},
        {rule: run[1] for rule, run in runs.items()},
        math.log(mean_radius(of_gram(gram, retained), update)),
    )


def _trained(net: Net, x: Tensor, y: Tensor, scale: Scale) -> tuple[Net, float]:
    """Full-batch descent at half of the edge, until the residual is small."""
    loss = math.inf
    for step in range(scale.training):
        slopes, off = net.slopes(x), net.outputs(x) - y
        loss = float(off.square().mean()) / 2
        if loss <= scale.residual:
            break
        if step % 100 == 0:
            rate = len(y) / float(torch.linalg.eigvalsh(slopes @ slopes.T)[-1])
        net = Net(net.filters - rate * (off @ slopes).view_as(net.filters) / len(y))
    return net, loss


def _leave(net: Net, x: Tensor, y: Tensor, retained: int, step: float, most: int) -> tuple[int, float]:
    """Steps until the forget loss exceeds `EXIT`, at most `most`, and the retained loss at that step."""
    weights = torch.cat(
        [torch.full((retained,), (1 - MIX) / retained), torch.full((len(y) - retained,), -MIX)]
    ).double()
    weights[retained:] /= len(y) - retained
    for taken in range(most + 1):
        off = net.outputs(x) - y
        losses = off.square() / 2
        if float(losses[retained:].mean()) > EXIT or taken == most:
            break
        net = Net(net.filters - step * ((weights * off) @ net.slopes(x)).view_as(net.filters))
    return taken, float(losses[:retained].mean())
