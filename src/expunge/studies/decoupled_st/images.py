"""Images of the study, as rows of zeros and ones: digits, sprites that are drawn here, and clothing."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from expunge.data.digits import Digits
from expunge.data.fashion_mnist import FashionMNIST

SPRITE_SIDE = 12
SHAPES = 3


class Images(NamedTuple):
    """Pixels `[n, d]`, each 0 or 1, with labels `[n]`; the first rows for training, the others for tests."""

    train: Tensor
    test: Tensor
    train_labels: Tensor
    test_labels: Tensor


def images(name: str, count: int, tests: int) -> Images:
    """The first `count` training and `tests` test images: `digits`, `sprites` or `clothing`."""
    if name == "sprites":
        pixels, labels = sprites(count + tests, torch.Generator().manual_seed(0))
        return Images(pixels[:count], pixels[count:], labels[:count], labels[count:])
    data = Digits(train=count, test=tests)() if name == "digits" else FashionMNIST(train=count, test=tests)()
    # Clothing is 28 x 28; a quarter of its pixels is enough to tell its kinds apart.
    pixels = data.inputs if name == "digits" else F.avg_pool2d(data.inputs, 2)
    rows = (pixels.flatten(1) > 0.5).float()
    return Images(rows[data.train], rows[data.test], data.targets[data.train], data.targets[data.test])


def sprites(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two filled squares, discs or crosses in a random place each, `[n, 144]`; the label is the first one's shape."""
    shapes = torch.randint(0, SHAPES, (count, 2), generator=generator)
    centres = torch.randint(2, SPRITE_SIDE - 2, (count, 2, 2), generator=generator)
    line = torch.arange(SPRITE_SIDE)
    rows = (line.view(1, 1, -1, 1) - centres[..., :1, None]).abs()
    columns = (line.view(1, 1, 1, -1) - centres[..., 1:, None]).abs()
    near = torch.maximum(rows, columns)
    kinds = torch.stack([near <= 1, rows.square() + columns.square() <= 5, (near <= 2) & (rows * columns == 0)])
    drawn = kinds.gather(0, shapes.view(1, count, 2, 1, 1).expand(1, count, 2, SPRITE_SIDE, SPRITE_SIDE))[0]
    return drawn.any(1).flatten(1).float(), shapes[:, 0]
