"""Base of the data sets of scenes: draw objects, refuse those that do not fit, colour and paint them."""

from __future__ import annotations

import colorsys
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from expunge.base.errors import SpecError
from expunge.base.part import Count, Natural
from expunge.base.seeds import derive
from expunge.core.contracts import Source
from expunge.core.data import Data
from expunge.core.scenes import BRIGHTEST, NOTHING, Scenes, painted, present, visible
from expunge.objectives.multilabel import Multilabel

ROUNDS = 60
"""How often scenes that do not fit are drawn again."""
LEAST_SEEN = 0.4
"""Share of an object that must be seen, in front of the others."""
DARKEST = 0.3
"""Of the grays of objects; the least brightness of a colour's largest part is 0.6."""


class Drawn(NamedTuple):
    """Drawn objects, and which scenes fit."""

    shades: Tensor
    """`[n, k, h, w]` uint8."""
    kinds: Tensor
    """`[n, k]`."""
    fits: Tensor
    """`[n]` bool."""


@dataclass(frozen=True)
class SceneSource(Source):
    """Objects on a plain backdrop; targets say which kinds a scene has."""

    labels: ClassVar[tuple[str, ...]]
    """Names of the kinds."""
    occlusion: ClassVar[bool] = True
    """Whether objects may cover each other."""

    train: Count = 2000
    """Number of training scenes."""
    test: Count = 500
    """Number of test scenes."""
    objects: Count = 3
    """Objects in a scene."""
    least: Count | None = None
    """Fewest objects in a scene, drawn uniformly from here to `objects`; by default every scene has `objects`."""
    colours: Literal["random", "same", "gray"] = "random"
    """A colour for each object, one colour for all objects of a scene, or a gray for each object."""
    touching: Literal["free", "never", "always"] = "free"
    """Whether objects may touch: as it comes, never, or each object touches another one."""
    seed: Natural = 0
    """Decides all scenes."""

    def __call__(self) -> Data:
        """Draw the scenes: images `[n, 3, h, w]` in [0, 1], and which kinds each has, `[n, kinds]`.

        Raises:
            SpecError: Scenes with so many objects, or objects that touch so, cannot be placed in images of this size.
        """
        if self.least is not None and self.least > self.objects:
            raise SpecError(f"found {self.least}", where="data.least", allowed=f"1 to {self.objects}, as data.objects")
        if self.touching == "always" and (self.least or self.objects) < 2:
            raise SpecError("one object has nothing to touch", where="data.touching", remedy="use 2 objects or more")
        count = self.train + self.test
        generator = torch.Generator().manual_seed(derive(self.seed, type(self).__name__))
        shades, kinds = self._accepted(count, generator)
        colours, backdrop = self._coloured(count, generator), self.backdrop(count, generator)
        images, ids = painted(shades, colours, backdrop), torch.arange(count)
        return Scenes(
            images,
            present(kinds, len(self.labels)),
            ids[: self.train],
            ids[self.train :],
            self.labels,
            objective=Multilabel(),
            shades=shades,
            colours=colours,
            backdrop=backdrop,
            kinds=kinds,
        )

    @abstractmethod
    def draw(self, kinds: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Objects of these kinds `[n, k]`: shades `[n, k, h, w]`, and which scenes have a place for all, `[n]` bool."""

    def backdrop(self, count: int, generator: torch.Generator) -> Tensor:
        """Colours behind the objects, `[n, 3]`; black by default."""
        return torch.zeros(count, 3)

    def palette(self, count: int, generator: torch.Generator) -> Tensor:
        """Colours of objects, `[count, 3]`: any hue, saturated and bright."""
        hues, others = torch.rand(count, generator=generator), torch.rand(count, 2, generator=generator)
        rows = [(h, 0.6 + 0.4 * s, 0.6 + 0.4 * v) for h, (s, v) in zip(hues.tolist(), others.tolist(), strict=True)]
        return torch.tensor([colorsys.hsv_to_rgb(*row) for row in rows]).view(count, 3)

    def _accepted(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        shades, kinds, found = [], [], 0
        for _ in range(ROUNDS):
            drawn = self._drawn(max(count - found, 64), generator)
            shades.append(drawn.shades[drawn.fits])
            kinds.append(drawn.kinds[drawn.fits])
            found += int(drawn.fits.sum())
            if found >= count:
                return torch.cat(shades)[:count], torch.cat(kinds)[:count]
        raise SpecError(
            f"{found} of {count} scenes with {self.objects} objects could be placed in {ROUNDS} rounds",
            where="data.objects",
            remedy=f"use fewer objects, larger images, or touching = 'free' instead of {self.touching!r}",
        )

    def _drawn(self, count: int, generator: torch.Generator) -> Drawn:
        kinds = torch.randint(len(self.labels), (count, self.objects), generator=generator)
        if self.least is not None:
            numbers = torch.randint(self.least, self.objects + 1, (count, 1), generator=generator)
            kinds = kinds.masked_fill(torch.arange(self.objects) >= numbers, NOTHING)
        shades, fits = self.draw(kinds, generator)
        return Drawn(shades, kinds, fits & self._allowed(shades > 0, kinds))

    def _allowed(self, covered: Tensor, kinds: Tensor) -> Tensor:
        there, whole = kinds != NOTHING, covered.flatten(2).sum(2)
        seen = F.one_hot(visible(covered), self.objects + 1).flatten(1, 2).sum(1)[:, 1:]
        least = LEAST_SEEN if self.occlusion else 1.0
        fits = ((seen >= least * whole) & (seen > 0) | ~there).all(1)
        if self.touching == "free":
            return fits
        touches = contacts(covered)
        return fits & ((touches.any(2) | ~there).all(1) if self.touching == "always" else ~touches.flatten(1).any(1))

    def _coloured(self, count: int, generator: torch.Generator) -> Tensor:
        if self.colours == "gray":
            grays = DARKEST + (1 - DARKEST) * torch.rand(count, self.objects, 1, generator=generator)
            return grays.expand(-1, -1, 3).contiguous()
        number = 1 if self.colours == "same" else self.objects
        drawn = self.palette(count * number, generator).view(count, number, 3)
        return drawn.expand(-1, self.objects, -1).contiguous()


def contacts(covered: Tensor) -> Tensor:
    """Which objects share a pixel or an edge of one: masks `[n, k, h, w]` to `[n, k, k]` bool, without themselves."""
    cross = torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]).view(1, 1, 3, 3)
    flat = covered.flatten(0, 1).unsqueeze(1).float()
    grown = F.conv2d(flat, cross, padding=1).view(covered.shape).flatten(2)
    touch = torch.bmm(grown, covered.flatten(2).float().mT) > 0
    return touch & ~torch.eye(covered.shape[1], dtype=torch.bool)


def shaded(brightness: Tensor) -> Tensor:
    """Brightness in (0, 1] inside objects and 0 outside, as whole numbers from 1 to 255, and 0."""
    return torch.where(brightness > 0, (brightness * BRIGHTEST).round().clamp(1, BRIGHTEST), 0.0).to(torch.uint8)
