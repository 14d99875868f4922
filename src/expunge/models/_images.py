"""Shared by architectures for images: the shape of the data's images, and the choice of norms."""

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
        SpecError: The data are not images, or are smaller than the architecture allows.
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
    """The normalisation of the channels: one layer, or none. Group norm has `group_count` groups."""
    if norm == "batch":
        return [nn.BatchNorm2d(channels)]
    if norm == "group":
        return [nn.GroupNorm(group_count(channels), channels)]
    return []


def group_count(channels: int) -> int:
    """The largest of 8, 4, 2 and 1 groups that divides the number of channels."""
    return next(g for g in (8, 4, 2, 1) if channels % g == 0)
