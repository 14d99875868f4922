"""Gates on what layers read: each input of a layer is multiplied by a number that is learned."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from expunge.blocks.mask import in_order
from expunge.numerics.matrices import input_dim

LOW, HIGH, SLOPE = -0.1, 1.1, 2 / 3
"""Ends of a stretched gate, and its temperature."""


class InputGate(nn.Module):
    """A parametrisation: the weights that read each input of a layer, times a gate.

    Args:
        layer: A layer with one weight matrix.
        start: Initial value of what is learned.
    """

    def __init__(self, layer: Any, start: float) -> None:
        super().__init__()
        self.dim = input_dim(layer)
        size = layer.weight.shape[self.dim]
        self.learned = nn.Parameter(torch.full((size,), start, dtype=layer.weight.dtype, device=layer.weight.device))
        self.gate: Tensor = torch.ones_like(self.learned)

    def clipped(self) -> Tensor:
        """Take the learned values, in [0, 1], as gates; they are their own penalty."""
        with torch.no_grad():
            self.learned.clamp_(0, 1)
        self.gate = self.learned
        return self.gate

    def drawn(self, generator: torch.Generator) -> Tensor:
        """Draw gates by the learned logits; the probability that each is open is the penalty."""
        uniform = torch.rand(self.learned.shape, generator=generator, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
        noise = uniform.logit().to(self.learned)
        stretched = LOW + (HIGH - LOW) * torch.sigmoid((noise + self.learned) / SLOPE)
        self.gate = stretched.clamp(0, 1)
        return torch.sigmoid(self.learned - SLOPE * math.log(-LOW / HIGH))

    def forward(self, weight: Tensor) -> Tensor:
        """The gated weight."""
        return weight * along(self.gate, weight, self.dim)


@contextmanager
def gated_inputs(layers: Mapping[str, nn.Module], start: float) -> Iterator[list[InputGate]]:
    """Inside, the inputs of these layers are gated; afterwards the layers are as they were."""
    order = {path: list(layer._parameters) for path, layer in layers.items()}
    gates = [InputGate(layer, start) for layer in layers.values()]
    for layer, gate in zip(layers.values(), gates, strict=True):
        parametrize.register_parametrization(layer, "weight", gate)
    try:
        yield gates
    finally:
        for path, layer in layers.items():
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
            in_order(layer._parameters, order[path])


def along(values: Tensor, weight: Tensor, dim: int) -> Tensor:
    """One value per index of a dimension, in a shape that broadcasts to the weight."""
    shape = [1] * weight.ndim
    shape[dim] = -1
    return values.view(shape)
