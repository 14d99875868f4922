"""Images of known objects: the mask of each object, and how a scene looks without some of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from expunge.base.errors import SpecError
from expunge.core.data import Data

NOTHING = -1
"""Kind of an object that a scene does not have."""
BRIGHTEST = 255


@dataclass(frozen=True)
class Scenes(Data):
    """Data whose images are painted from objects on a plain backdrop; a later object covers earlier ones.

    Args:
        shades: Brightness of each object's pixels `[n, k, h, w]` uint8, 0 outside of the object. Covered pixels count.
        colours: Colour of each object, `[n, k, 3]` in [0, 1].
        backdrop: Colour behind all objects, `[n, 3]` in [0, 1].
        kinds: Kind of each object, `[n, k]`; -1 for no object.

    The other arguments are those of `Data`; the inputs are the images `[n, 3, h, w]`, the targets which kinds a scene
    has, `[n, kinds]`.
    """

    shades: Tensor = field(kw_only=True)
    colours: Tensor = field(kw_only=True)
    backdrop: Tensor = field(kw_only=True)
    kinds: Tensor = field(kw_only=True)

    @cached_property
    def masks(self) -> Tensor:
        """The number of the object that is seen at each pixel, from 1; 0 for the backdrop, `[n, h, w]` int64."""
        return visible(self.shades)

    def without(self, ids: Tensor, objects: Tensor) -> Tensor:
        """The images of these scenes without some objects: what was behind them is seen.

        Args:
            ids: The scenes, `[b]`.
            objects: Which objects go, `[b, k]` bool.

        Returns:
            Images `[b, 3, h, w]`.
        """
        kept = self.shades[ids] * (~objects)[..., None, None].to(torch.uint8)
        return painted(kept, self.colours[ids], self.backdrop[ids])

    def kinds_without(self, ids: Tensor, objects: Tensor) -> Tensor:
        """Which kinds these scenes have without some objects, `[b, kinds]`; arguments as in `without`."""
        left = self.kinds[ids].masked_fill(objects, NOTHING)
        return present(left, self.targets.shape[1])


def require_scenes(data: Data, where: str) -> Scenes:
    """Refuse data whose objects are not known.

    Raises:
        SpecError: The data are no scenes.
    """
    if isinstance(data, Scenes):
        return data
    raise SpecError(
        "the data do not know which object each pixel belongs to",
        where=where,
        allowed="scenes: the data sets tetrominoes, sprites and shaded_shapes",
    )


def visible(shades: Tensor) -> Tensor:
    """The number of the last object that covers each pixel, from 1, or 0: `[n, k, h, w]` to `[n, h, w]`."""
    numbers = torch.arange(1, shades.shape[1] + 1, device=shades.device).view(1, -1, 1, 1)
    return ((shades > 0) * numbers).amax(1)


def painted(shades: Tensor, colours: Tensor, backdrop: Tensor) -> Tensor:
    """Images `[n, 3, h, w]` of objects in front of a backdrop."""
    seen = visible(shades)
    images = backdrop[..., None, None].expand(-1, -1, *seen.shape[1:]).clone()
    for number in range(shades.shape[1]):
        shaded = colours[:, number, :, None, None] * (shades[:, number, None].float() / BRIGHTEST)
        images = torch.where((seen == number + 1).unsqueeze(1), shaded, images)
    return images


def present(kinds: Tensor, count: int) -> Tensor:
    """Which of `count` kinds occur in each row of kinds `[n, k]`: `[n, count]` of 0 and 1."""
    return (kinds.unsqueeze(2) == torch.arange(count)).any(1).long()
