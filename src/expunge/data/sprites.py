"""Coloured ovals, hearts and squares on gray, drawn here: scenes as those of Multi-dSprites, with masks (2405.17283).

Two to five sprites, each with a size, a turn, a place and a colour of its own, may cover each other; of each, at least
two fifths are seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import msgspec
import torch
from torch import Tensor

from expunge.base.part import Count
from expunge.core.scenes import NOTHING
from expunge.data._scenes import SceneSource, shaded

Side = Annotated[int, msgspec.Meta(ge=8)]
"""Height and width of an image in pixels."""
SIZES = (0.13, 0.22)
"""Least and largest half size of an object, as a share of the image's side."""
GRAYS = (0.1, 0.5)
"""Of the backdrop."""


@dataclass(frozen=True)
class Sprites(SceneSource):
    """Images of 64 x 64 by default, as in the paper."""

    cite: ClassVar[str] = "gopalakrishnan2024recurrent"
    labels: ClassVar[tuple[str, ...]] = ("oval", "heart", "square")

    objects: Count = 5
    """Most objects in a scene."""
    least: Count | None = 2
    """Fewest objects in a scene; the number is drawn uniformly from here to `objects`."""
    side: Side = 64
    """Height and width of an image in pixels."""

    def draw(self, kinds: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Flat shapes in any place and any turn."""
        x, y = self.places(kinds, generator)
        oval = x.square() + (y / 0.6).square() <= 1
        square = torch.maximum(x.abs(), y.abs()) <= 0.8
        # The curve (x^2 + y^2 - 1)^3 = x^2 y^3 is a heart of about 2.3 by 2.4.
        u, v = 1.2 * x, -1.2 * y
        heart = (u.square() + v.square() - 1) ** 3 - u.square() * v**3 <= 0
        inside = torch.stack([oval, heart, square]).gather(0, _index(kinds, x))[0]
        return shaded((inside & (kinds != NOTHING)[..., None, None]).float()), torch.ones(len(kinds), dtype=torch.bool)

    def places(self, kinds: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Coordinates of each pixel as each object sees them, turned and in its half sizes, two `[n, k, h, w]`."""
        return coordinates(kinds, self.side, generator)

    def backdrop(self, count: int, generator: torch.Generator) -> Tensor:
        """Any gray from 0.1 to 0.5."""
        low, high = GRAYS
        return (low + (high - low) * torch.rand(count, 1, generator=generator)).expand(-1, 3).contiguous()


def coordinates(kinds: Tensor, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Coordinates of each pixel as each object sees them: turned, and in units of its half size.

    Args:
        kinds: Kinds `[n, k]`; only the shape matters.
        side: Height and width of the image in pixels.
        generator: Draws size, turn and place of each object.

    Returns:
        Two tensors `[n, k, side, side]`.
    """
    size, turn, left, top = torch.rand(4, *kinds.shape, 1, 1, generator=generator)
    half = SIZES[0] + (SIZES[1] - SIZES[0]) * size
    angle = 2 * math.pi * turn
    pixel = (torch.arange(side) + 0.5) / side
    # The centre is so far inside that most of the object is, too.
    x = pixel.view(1, -1) - (half + (1 - 2 * half) * left)
    y = pixel.view(-1, 1) - (half + (1 - 2 * half) * top)
    return (angle.cos() * x + angle.sin() * y) / half, (angle.cos() * y - angle.sin() * x) / half


def _index(kinds: Tensor, like: Tensor) -> Tensor:
    return kinds.clamp(min=0).view(1, *kinds.shape, 1, 1).expand(1, *like.shape)
