"""Gradient flow of a bilinear form x' Q y towards Q* = diag(s): how much modes mix, and how each of them grows.

Loss |Q* - Q|^2 / 2 with Q = W' V, in whitened inputs; with correlated inputs the error E becomes S_x E S_y. Modes of
the target are unit vectors, so the off-diagonal of Q is what mixes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

WIDTH, HIDDEN = 16, 24
STRENGTHS = (4.0, 3.0, 2.0, 1.0)
STEP = 0.02
SEEN, LEARNED = 0.05, 0.2
"""A mode counts from this share of its target on, and the form from this share of the target's norm: at the largest
initial scale, random weights alone have a seventh of it."""


@dataclass(frozen=True)
class Flow:
    """The path of the form, `[t, d, d]`, and its target `[d, d]`."""

    forms: Tensor
    target: Tensor

    @property
    def mixing(self) -> float:
        """Largest share of the form's energy outside the target's modes, from `LEARNED` on."""
        energy = self.forms.square().sum((1, 2))
        seen = energy.sqrt() > LEARNED * self.target.norm()
        along = self.forms.diagonal(dim1=1, dim2=2).square().sum(1)
        return float((1 - along[seen] / energy[seen]).max())

    @property
    def off_law(self) -> float:
        """Largest distance of a mode to the logistic curve through its first seen value, relative to its strength."""
        worst = 0.0
        for j, strength in enumerate(self.target.diagonal().tolist()):
            if strength == 0:
                continue
            q = self.forms[:, j, j]
            first = int((q > SEEN * strength).nonzero()[0])
            t = STEP * torch.arange(len(q) - first)
            law = strength / (1 + (strength / float(q[first]) - 1) * (-2 * strength * t).exp())
            worst = max(worst, float((q[first:] - law).abs().max()) / strength)
        return worst

    def half(self) -> Tensor:
        """The form when it has first reached half of the target's norm."""
        norms = self.forms.flatten(1).norm(dim=1)
        return self.forms[int((norms > self.target.norm() / 2).nonzero()[0])]


def flow(
    scale: float, generator: torch.Generator, strengths: tuple[float, ...] = STRENGTHS, moments: Tensor | None = None
) -> Flow:
    """Integrate from random weights, in double precision, until the slowest mode has arrived.

    Args:
        scale: Standard deviation of the initial weights.
        generator: Draws them.
        strengths: Of the target's modes.
        moments: Second moments of both inputs, `[d, d]`; whitened by default.
    """
    target = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    target[range(len(strengths)), range(len(strengths))] = torch.tensor(strengths, dtype=torch.float64)
    w, v = (scale * torch.randn(HIDDEN, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2))
    until = (math.log(min(strengths) / scale**2) + 6) / (2 * min(strengths))

    def velocity(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        error = target - a.T @ b
        error = error if moments is None else moments @ error @ moments
        return b @ error.T, a @ error

    forms = [w.T @ v]
    for _ in range(round(until / STEP)):
        k1 = velocity(w, v)
        k2 = velocity(w + STEP / 2 * k1[0], v + STEP / 2 * k1[1])
        k3 = velocity(w + STEP / 2 * k2[0], v + STEP / 2 * k2[1])
        k4 = velocity(w + STEP * k3[0], v + STEP * k3[1])
        w, v = (x + STEP / 6 * (a + 2 * b + 2 * c + d) for x, a, b, c, d in zip((w, v), k1, k2, k3, k4, strict=True))
        forms.append(w.T @ v)
    return Flow(torch.stack(forms), target)


def correlated(generator: torch.Generator) -> Tensor:
    """Second moments with eigenvalues from 1/2 to 2 in random directions."""
    turn: Tensor = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64)).Q
    moments: Tensor = (turn * torch.logspace(-1, 1, WIDTH, base=2.0, dtype=torch.float64)) @ turn.T
    return moments
