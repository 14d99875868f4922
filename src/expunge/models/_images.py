"""What architectures for images ask of the data, and the norms that they choose from."""

from __future__ import annotations

from typing import Literal

from torch import nn

from expunge.base.errors import SpecError
from expunge.core.data import Data

Norm = Literal["group", "batch", "none"]
"""Normalisation after a convolution."""


def image_shape(data: Data, smallest: int, name: str) -> tuple[int, int, int]:
    """Channels, height and width of the data's images.

    Raises:
        SpecError: The data are no images, or smaller than the architecture can take.
    """
    shape = data.shape
    if data.has_tokens or len(shape) != 3 or min(shape[1:]) < smallest:
        raise SpecError(
            f"inputs have shape {list(shape)}",
            where=f"model ({name})",
            allowed=f"images [channels, height, width] of at least {smallest} x {smallest}",
            remedy="use the model gpt for text" if data.has_tokens else "use the model mlp for vectors",
        )
    return shape[0], shape[1], shape[2]


def norm_layers(norm: Norm, channels: int) -> list[nn.Module]:
    """The normalisation of so many channels: one layer, or none; at most 8 groups, as many as divide the channels."""
    if norm == "batch":
        return [nn.BatchNorm2d(channels)]
    if norm == "group":
        return [nn.GroupNorm(group_count(channels), channels)]
    return []


def group_count(channels: int) -> int:
    """Groups of so many normalised channels: at most 8, as many as divide them."""
    return next(g for g in (8, 4, 2, 1) if channels % g == 0)
