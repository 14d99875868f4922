"""Nets side by side: each has its own weights and codebook; all start from the same weights and see the same data.

Weights have a leading dimension for the net, so that one product serves all of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.blocks.codebook import CodebookLayer

PLACES = ("messages", "edges", "inputs", "updates")


@dataclass(frozen=True)
class Variant:
    """What passes a codebook; without heads nothing does."""

    name: str
    heads: int = 0
    codes: int = 16
    place: str = "messages"
    kind: str = "gradient"

    def layer(self, width: int) -> nn.Module:
        """The codebook of this variant."""
        if not self.heads:
            return nn.Identity()
        return CodebookLayer(width, self.heads, self.codes, kind=self.kind)  # type: ignore[arg-type]


CONTINUOUS, ONE, FOUR = Variant("continuous"), Variant("1 head", 1), Variant("4 heads", 4)
PRIMARY = (CONTINUOUS, ONE, FOUR)


class Chain(nn.Module):
    """Linear layers with ReLU between them, for all nets: `[nets, rows, inputs]` to `[nets, rows, outputs]`."""

    def __init__(self, nets: int, *widths: int) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for inputs, outputs in itertools.pairwise(widths):
            bound = 1 / math.sqrt(inputs)
            for parameters, shape in ((self.weights, (inputs, outputs)), (self.biases, (1, outputs))):
                drawn = torch.empty(1, *shape).uniform_(-bound, bound)
                parameters.append(nn.Parameter(drawn.repeat(nets, 1, 1)))

    def forward(self, rows: Tensor) -> Tensor:
        """The outputs."""
        for at, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            rows = torch.baddbmm(bias, torch.relu(rows) if at else rows, weight)
        return rows


class Codes(nn.Module):
    """The codebook of each net at one place; nets that have none there pass their rows on."""

    def __init__(self, variants: Sequence[Variant], place: str, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            variant.layer(width) if variant.place == place else nn.Identity() for variant in variants
        )
        self.none = all(isinstance(layer, nn.Identity) for layer in self.layers)

    def forward(self, rows: Tensor) -> Tensor:
        """Rows `[nets, ..., width]` with codes in the place of those of some nets."""
        if self.none:
            return rows
        return torch.stack([layer(own) for layer, own in zip(self.layers, rows, strict=True)])
