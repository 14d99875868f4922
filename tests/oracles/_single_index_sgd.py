"""SGD on a two-layer network of quadratic units and one hidden direction, written out: what the fading model describes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

STEP = 0.05


def sgd_step(rows: Tensor, scales: Tensor, batch: int, ratio: float) -> tuple[Tensor, Tensor]:
    """One step on fresh data: unit rows `[n, d]` move on their sphere, second-layer weights `[n]` by `ratio` as fast."""
    units = len(rows)
    x = torch.randn(batch, rows.shape[1])
    z, target = x @ rows.T, x[:, 0]
    hidden = z + 0.5 * (z * z - 1) / math.sqrt(2)
    residual = target - 0.5 * (target**2 - 1) / math.sqrt(2) - hidden @ scales / units
    pull = (residual[:, None] * (1 + z / math.sqrt(2)) * scales).T @ x / batch
    pull = pull - (pull * rows).sum(1, keepdim=True) * rows
    scales = scales + STEP * ratio * residual @ hidden / batch
    return torch.nn.functional.normalize(rows + STEP * pull, dim=1), scales
