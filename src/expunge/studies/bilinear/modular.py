"""Modular addition with one-hot operands: training, the recovered operator, Fourier pairs, and closed-form removals."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.blocks.bilinear import BilinearLayer
from expunge.numerics.bilinear import predict_collateral
from expunge.studies.bilinear.setup import Network
from expunge.studies.bilinear.structure import steps_until

SHARE = 0.8
"""Share of the pairs in training."""
HIDDEN = 96
"""Products of the bilinear network; the others have as many weights."""
KNOWN = 0.9
"""Accuracy from which a residue, or all of them, count as relearned."""


def size(p: int) -> int:
    """Number of weights of every network."""
    return HIDDEN * 3 * p


def pairs(p: int) -> tuple[Tensor, Tensor, Tensor]:
    """One-hot first and second operands of all pairs, and their sums."""
    a, b = torch.arange(p).repeat_interleave(p), torch.arange(p).repeat(p)
    return F.one_hot(a, p).float(), F.one_hot(b, p).float(), (a + b) % p


def trained(name: str, p: int, steps: int, decay: float, generator: torch.Generator) -> Network:
    """A network trained on a random part of all pairs: AdamW on the whole part, cross-entropy."""
    network = Network(name, p, p, p, size(p))
    a, b, c = pairs(p)
    chosen = torch.randperm(p * p, generator=generator)[: round(SHARE * p * p)]
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3, weight_decay=decay)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(network(a[chosen], b[chosen]), c[chosen]).backward()
        optimizer.step()
    return network


@torch.no_grad()
def operator_error(network: nn.Module, p: int) -> float:
    """Sine of the angle between the logits of all pairs and the true table, both without their means over answers."""
    a, b, c = pairs(p)
    logits = network(a, b)
    logits, truth = (t - t.mean(1, keepdim=True) for t in (logits, F.one_hot(c, p).float()))
    cosine = float((logits * truth).sum() / (logits.norm() * truth.norm()))
    return math.sqrt(max(1 - cosine**2, 0.0))


def fourier_share(layer: BilinearLayer) -> float:
    """Share of the energy of the interaction matrices, without constants, where both operands' frequencies agree."""
    energy = _spectrum(layer).sum(0)
    p = len(energy)
    f = torch.arange(p)
    same = (f[:, None] == f) | ((f[:, None] + f) % p == 0)
    rest = (f[:, None] > 0) & (f > 0)
    return float(energy[same & rest].sum() / energy[rest].sum())


def _spectrum(layer: BilinearLayer) -> Tensor:
    form = layer.interaction()
    spectrum: Tensor = torch.fft.fft2(form - form.mean(0)).abs().square()
    return spectrum


def residue_removed(layer: BilinearLayer, residue: int) -> BilinearLayer:
    """The layer without the logit of one residue, relative to the mean logit."""
    edited = copy.deepcopy(layer).double()
    p = edited.out.out_features
    edited.remove_direction(torch.eye(p, dtype=torch.float64)[residue] - 1 / p)
    return edited


def frequency_removed(layer: BilinearLayer) -> BilinearLayer:
    """The layer without the interaction of its strongest frequency, a plane of each operand, for every residue."""
    edited = copy.deepcopy(layer).double()
    p = edited.out.out_features
    strongest = 1 + int(_spectrum(edited).sum(0).diagonal()[1 : (p + 1) // 2].argmax())
    angle = 2 * math.pi * strongest * torch.arange(p, dtype=torch.float64) / p
    plane = torch.stack([angle.cos(), angle.sin()], 1) * math.sqrt(2 / p)
    for direction in torch.eye(p, dtype=torch.float64):
        edited.remove_subspace(direction, plane @ plane.T, plane @ plane.T)
    edited.refactor(hidden=p * p)
    return edited


def relearned(sums: Network, p: int, most: int) -> dict[str, float]:
    """Steps on all pairs until the removed residue, or all residues without a frequency, are right again.

    Args:
        sums: The bilinear network.
        p: The modulus.
        most: Most steps.

    Returns:
        Binary logarithms of the steps, divided by those of a fresh network.
    """
    layer = sums.body
    assert isinstance(layer, BilinearLayer)
    a, b, c = pairs(p)
    found = {}
    for name, edited, asked in (
        ("residue", residue_removed(layer, 0), c == 0),
        ("frequency", frequency_removed(layer), c >= 0),
    ):
        steps = []
        for body in (edited.float(), Network("bilinear", p, p, p, size(p)).body):
            net = copy.deepcopy(sums)
            net.body = body

            def known(net: Network = net, asked: Tensor = asked) -> bool:
                with torch.no_grad():
                    right: Tensor = net(a[asked], b[asked]).argmax(1) == c[asked]
                return float(right.float().mean()) >= KNOWN

            def loss(net: Network = net) -> Tensor:
                return F.cross_entropy(net(a, b), c)

            optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3, weight_decay=0.01)
            steps.append(steps_until(net, loss, known, most=most, every=2, optimizer=optimizer))
        found[name] = math.log2(steps[0] / steps[1])
    return found


@torch.no_grad()
def collateral(before: BilinearLayer, after: BilinearLayer, left: Tensor, right: Tensor) -> tuple[float, float]:
    """Predicted and measured mean squared change over all pairs of inputs, relative to the mean square of the output.

    Args:
        before: The layer before the edit.
        after: The edited layer.
        left: Retained left inputs, `[n, d_x]`.
        right: Retained right inputs, `[m, d_y]`.
    """
    before, after, left, right = before.double(), after.double(), left.double(), right.double()
    change = after.interaction() - before.interaction()
    predicted = predict_collateral(change, left.T @ left / len(left), right.T @ right / len(right))
    x, y = left.repeat_interleave(len(right), 0), right.repeat(len(left), 1)
    was, now = before(x, y), after(x, y)
    whole = float(was.square().sum(1).mean())
    return predicted / whole, float((now - was).square().sum(1).mean()) / whole
