"""Shaded ellipses and boxes, drawn here: light from above left changes the colour within an object. Not CLEVR.

Three to six objects may cover each other. Because colours vary within objects and grays of the backdrop vary between
scenes, clusters of colour do not match objects as well as in flat scenes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from expunge.base.part import Count
from expunge.core.scenes import NOTHING
from expunge.data._scenes import SceneSource, shaded
from expunge.data.sprites import Side, coordinates

DARK = 0.35
"""Brightness on the side that is away from the light."""


@dataclass(frozen=True)
class ShadedShapes(SceneSource):
    """Images of 48 x 48 by default."""

    labels: ClassVar[tuple[str, ...]] = ("ellipse", "box")

    objects: Count = 6
    """Most objects in a scene."""
    least: Count | None = 3
    """Fewest objects in a scene; the number is drawn uniformly from here to `objects`."""
    side: Side = 48
    """Height and width of an image in pixels."""

    def draw(self, kinds: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Ellipses are lit like spheres, boxes evenly from one edge to the other."""
        x, y = coordinates(kinds, self.side, generator)
        y = y / 0.75
        ball = x.square() + y.square()
        depth = (1 - ball).clamp(min=0).sqrt()
        light = {
            "ellipse": (ball <= 1, (depth - 0.4 * x - 0.4 * y) / 1.2),
            "box": (torch.maximum(x.abs(), y.abs()) <= 0.8, 0.5 - (x + y) / 3.2),
        }
        is_box = (kinds == self.labels.index("box"))[..., None, None]
        (in_ellipse, on_ellipse), (in_box, on_box) = light["ellipse"], light["box"]
        inside = torch.where(is_box, in_box, in_ellipse) & (kinds != NOTHING)[..., None, None]
        brightness = DARK + (1 - DARK) * torch.where(is_box, on_box, on_ellipse).clamp(0, 1)
        return shaded(brightness * inside), torch.ones(len(kinds), dtype=torch.bool)

    def backdrop(self, count: int, generator: torch.Generator) -> Tensor:
        """Any dark gray, up to 0.3."""
        return (0.3 * torch.rand(count, 1, generator=generator)).expand(-1, 3).contiguous()
