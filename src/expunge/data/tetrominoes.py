"""Three bevelled tetrominoes on black, drawn here: scenes like the Tetrominoes data set, with masks (2405.17283).

Pieces lie in a grid of cells, without overlap. The data set has 17 shapes with their rotations. All rotations of the
seven one-sided pieces are 19, and which two it leaves out could not be found out: here it is the upright S and Z.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from expunge.base.errors import SpecError
from expunge.base.part import Count
from expunge.core.scenes import NOTHING
from expunge.data._scenes import SceneSource, shaded

PIECES: dict[str, tuple[str, ...]] = {
    "I": ("####", "#/#/#/#"),
    "O": ("##/##",),
    "T": ("###/.#.", ".#/##/.#", ".#./###", "#./##/#."),
    "S": (".##/##.",),
    "Z": ("##./.##",),
    "J": ("#../###", "##/#./#.", "###/..#", ".#/.#/##"),
    "L": ("..#/###", "#./#./##", "###/#..", "##/.#/.#"),
}
"""Rotations of each piece; rows of cells."""
SIX = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1))
"""Red, green, blue, yellow, magenta and cyan."""
BEVEL = 0.8
"""Brightness of a cell's border."""


class Places(NamedTuple):
    """Every way to put a piece into the grid."""

    cells: Tensor
    """Covered cells `[places, cells^2]`, 0 or 1."""
    kind: Tensor
    """`[places]`."""


@dataclass(frozen=True)
class Tetrominoes(SceneSource):
    """Images of 35 x 35 by default, as in the paper; `cells` times `pixels` on a side."""

    cite: ClassVar[str] = "gopalakrishnan2024recurrent"
    labels: ClassVar[tuple[str, ...]] = tuple(PIECES)
    occlusion: ClassVar[bool] = False

    cells: Count = 7
    """Height and width of the grid in cells."""
    pixels: Count = 5
    """Height and width of a cell in pixels."""

    def draw(self, kinds: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Each piece in a random place among those that are left."""
        if self.cells < 4:
            raise SpecError(f"found {self.cells}", where="data.cells", allowed="at least 4, the longest piece")
        if 4 * self.objects > self.cells**2:
            finding = f"{self.objects} pieces of 4 cells are more than {self.cells} x {self.cells} cells"
            raise SpecError(finding, where="data.objects", allowed=f"1 to {self.cells**2 // 4}")
        places, count = _places(self.cells), len(kinds)
        taken, fits, chosen = torch.zeros(count, self.cells**2), torch.ones(count, dtype=torch.bool), []
        for kind in kinds.T:
            free = (taken @ places.cells.T == 0) & (places.kind == kind.unsqueeze(1))
            open_to = free.any(1)
            fits &= open_to | (kind == NOTHING)
            at = torch.multinomial(torch.where(open_to.unsqueeze(1), free, True).float(), 1, generator=generator)[:, 0]
            covered = places.cells[at] * open_to.unsqueeze(1)
            taken = taken + covered
            chosen.append(covered)
        return shaded(self._enlarged(torch.stack(chosen, 1))), fits

    def palette(self, count: int, generator: torch.Generator) -> Tensor:
        """One of six colours each."""
        return torch.tensor(SIX, dtype=torch.float32)[torch.randint(len(SIX), (count,), generator=generator)]

    def _enlarged(self, covered: Tensor) -> Tensor:
        cell = torch.full((self.pixels, self.pixels), BEVEL)
        cell[1:-1, 1:-1] = 1.0
        return torch.kron(covered.unflatten(2, (self.cells, self.cells)).contiguous(), cell)


@cache
def _places(cells: int) -> Places:
    grids, kinds = [], []
    for kind, rotations in enumerate(PIECES.values()):
        for rotation in rotations:
            piece = torch.tensor([[float(cell == "#") for cell in row] for row in rotation.split("/")])
            height, width = piece.shape
            for top in range(cells - height + 1):
                for left in range(cells - width + 1):
                    grid = torch.zeros(cells, cells)
                    grid[top : top + height, left : left + width] = piece
                    grids.append(grid.flatten())
                    kinds.append(kind)
    return Places(torch.stack(grids), torch.tensor(kinds))
