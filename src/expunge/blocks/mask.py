"""Masks with learned scores: a share of neurons, channels or heads behind a module, or of weights, is switched off.

    M = 0 for the share of units with the lowest |s|, 1 for the others;  dL/d|s| = dL/dM

The ranking has no derivative. The backward pass goes straight through it, to the scores s (edge-popup, Ramanujan et
al., 1911.13299). At each pass the mask is made anew, so a unit that was switched off comes back when its score rises.
As a block, a mask stands behind a module in the model; `masked_weights` masks weights for a while.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from expunge.base.errors import SpecError
from expunge.base.part import Count, Share
from expunge.blocks._channels import channel_dim, width_behind, writer_of
from expunge.core.contracts import Block


@dataclass(frozen=True)
class Mask(Block):
    """A learned mask of neurons, channels or heads."""

    cite: ClassVar[str] = "ramanujan2020hidden"

    share: Share = 0.0
    """Share of the units that are switched off."""
    heads: Count | None = None
    """Number of groups of equal size into which channels are divided, such as attention heads behind the projection of
    values; by default each channel is a unit of its own."""
    dim: int | None = None
    """Dimension of the channels in the output. By default the last one behind a linear layer or a layer norm, otherwise
    1, for example behind a convolution."""

    def __call__(self, model: nn.Module, path: str) -> UnitMask:
        """Make the module that masks the output.

        Raises:
            SpecError: The size of the output is not known, or heads do not divide it.
        """
        writer = writer_of(model, path)
        channels = width_behind(writer)
        if channels is None:
            raise SpecError(
                f"the number of channels behind {path!r} is not known",
                where="at",
                allowed="modules that end with a linear layer, a convolution, an embedding or a norm",
            )
        if self.heads and channels % self.heads:
            raise SpecError(f"{self.heads} heads do not divide {channels} channels", where="heads")
        dim = self.dim if self.dim is not None else channel_dim(writer)
        return UnitMask(self.heads or channels, channels, self.share, dim)


class UnitMask(nn.Module):
    """Multiplies groups of channels by their mask.

    Args:
        units: Number of units; each has `channels / units` channels.
        channels: Size of the dimension.
        share: Share of the units that are off.
        dim: The dimension of the channels.
    """

    def __init__(self, units: int, channels: int, share: float, dim: int) -> None:
        super().__init__()
        self.channels, self.share, self.dim = channels, share, dim
        self.scores = nn.Parameter(torch.ones(units) + 0.01 * torch.rand(units))

    def forward(self, hidden: Tensor) -> Tensor:
        """The output with masked channels, of the same shape and dtype."""
        mask = straight_through(self.scores, self.share).to(hidden.dtype)
        shape = [1] * hidden.ndim
        shape[self.dim] = self.channels
        return hidden * mask.repeat_interleave(self.channels // len(mask)).view(shape)


class WeightMask(nn.Module):
    """A parametrisation: the weight times its mask.

    Args:
        scores: One per weight, in its shape.
        share: Share of the weights that are off.
    """

    def __init__(self, scores: Tensor, share: float) -> None:
        super().__init__()
        self.scores, self.share = nn.Parameter(scores), share

    def forward(self, weight: Tensor) -> Tensor:
        """The masked weight."""
        return weight * straight_through(self.scores, self.share).to(weight.dtype)


@contextmanager
def masked_weights(layers: Mapping[str, nn.Module], share: float, generator: torch.Generator) -> Iterator[list[Any]]:
    """Inside, the weights of these layers are masked; afterwards they are what they are inside, without masks.

    Args:
        layers: By path.
        share: Share of each layer's weights that are off.
        generator: Draws the scores: uniform with Kaiming's bound for a = sqrt(5), as of `nn.Linear`.

    Yields:
        The scores of each layer.
    """
    masks, order = [], {path: list(layer._parameters) for path, layer in layers.items()}
    for layer in layers.values():
        weight: Any = layer.weight
        bound = 1 / math.sqrt(weight[0].numel())
        scores = bound * (torch.rand(weight.shape, generator=generator, dtype=torch.float64) * 2 - 1)
        masks.append(WeightMask(scores.to(weight), share))
        parametrize.register_parametrization(layer, "weight", masks[-1])
    try:
        yield [mask.scores for mask in masks]
    finally:
        for path, layer in layers.items():
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
            in_order(layer._parameters, order[path])


def in_order(parameters: dict[str, Any], names: list[str]) -> None:
    """Restore the order in which a layer lists its parameters; removing a parametrisation puts its own last."""
    whole = dict(parameters)
    parameters.clear()
    parameters.update({name: whole[name] for name in names})


def straight_through(scores: Tensor, share: float) -> Tensor:
    """The mask of scores, 0 and 1 in their shape; its gradient goes to |scores| as if the mask were |scores|."""
    size = scores.abs()
    return lowest_off(size.detach(), share) + (size - size.detach())


def lowest_off(values: Tensor, share: float) -> Tensor:
    """0 for the given share of the lowest values, 1 for the others; among equals the earlier ones are off.

    Args:
        values: Of any shape.
        share: From 0 to 1; the number of zeros is rounded down, as in published code.
    """
    mask = torch.ones_like(values).flatten()
    count = math.floor(share * values.numel() + 1e-9)
    mask[values.flatten().argsort(stable=True)[:count]] = 0
    return mask.view(values.shape)
