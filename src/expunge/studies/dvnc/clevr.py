"""Sort-of-CLEVR: questions about coloured shapes in a picture, for a transformer whose attention speaks in codes.

A picture of 32 x 32 pixels shows discs and squares, each with a colour of its own. Below it, one more row of patches
holds the question: its kind, and the colours that it is about. Answers are yes or no. Unary questions concern one
object, binary two, ternary three.

    unary      is it a square?  left of the middle?  in the upper half?
    binary     have both the same shape?  is the first left of the second?  are they closer than a third of the picture?
    ternary    is the first closer to the second than to the third?  do all have one shape?  is the first the leftmost?
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.blocks import put
from expunge.blocks.codebook import Codebook
from expunge.core.data import Data
from expunge.models.vit import ViT

COLOURS = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 1], [0.4, 0.4, 0.4]])
TRAINED, OTHERS = 6, (4, 8)
"""Objects in training, and fewer and more in the tests outside of it."""
SIDE, PATCH, RADIUS = 32, 8, 2
KINDS = 3
"""Questions of each arity."""
BATCH, DEPTH = 64, 4
ARITIES = ("unary", "binary", "ternary")


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures with their question `[n, 3, 40, 32]`, answers `[n]`, and the number of objects asked about, `[n]`."""

    pictures: Tensor
    answers: Tensor
    arity: Tensor


def questions(count: int, objects: int, generator: torch.Generator) -> Pictures:
    """Random scenes, each with one question."""
    grid = torch.rand(count, 36, generator=generator).argsort(1)[:, :objects]
    # Places of a 6 x 6 grid, so that objects do not overlap.
    places = torch.stack([grid // 6, grid % 6], -1) * 5 + 3
    squares = torch.rand(count, objects, generator=generator) < 0.5
    about = torch.rand(count, objects, generator=generator).argsort(1)[:, :3]
    arity = torch.randint(3, (count,), generator=generator)
    kind = torch.randint(KINDS, (count,), generator=generator)
    rows = torch.arange(count).unsqueeze(1)
    at, shape = places[rows, about].float(), squares[rows, about]
    answers = _answers(at, shape)[torch.arange(count), arity, kind]
    pictures = torch.zeros(count, 3, SIDE + PATCH, SIDE)
    _draw(pictures, places, squares)
    _ask(pictures, about, arity, kind)
    return Pictures(pictures, answers.long(), arity + 1)


def _answers(at: Tensor, shape: Tensor) -> Tensor:
    """The answers to all questions, `[n, arity, kind]` bool; `at` is `[n, 3, (y, x)]`, in pixels."""
    first, second, third = at.unbind(1)
    near, far = (first - second).norm(dim=1), (first - third).norm(dim=1)
    unary = [shape[:, 0], first[:, 1] < SIDE / 2, first[:, 0] < SIDE / 2]
    binary = [shape[:, 0] == shape[:, 1], first[:, 1] < second[:, 1], near < SIDE / 3]
    ternary = [near < far, (shape == shape[:, :1]).all(1), first[:, 1] < torch.minimum(second[:, 1], third[:, 1])]
    return torch.stack([torch.stack(kinds, 1) for kinds in (unary, binary, ternary)], 1)


def _draw(pictures: Tensor, places: Tensor, squares: Tensor) -> None:
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    for colour, (place, square) in enumerate(zip(places.unbind(1), squares.unbind(1), strict=True)):
        down, right = (axis - place[:, at, None, None] for at, axis in enumerate((y, x)))
        disc = down.square() + right.square() <= RADIUS**2
        box = (down.abs() <= RADIUS) & (right.abs() <= RADIUS)
        inside = torch.where(square[:, None, None], box, disc)
        pictures[:, :, :SIDE] += inside.unsqueeze(1) * COLOURS[colour].view(1, 3, 1, 1)


def _ask(pictures: Tensor, about: Tensor, arity: Tensor, kind: Tensor) -> None:
    """Below the picture: one patch for the question, and one for each object's colour."""
    rows = torch.arange(len(pictures))
    strip = pictures[:, :, SIDE:]
    strip[rows, kind, arity, :PATCH] = 1
    for place in range(3):
        colour = (arity >= place).float()[:, None] * COLOURS[about[:, place]]
        left = (place + 1) * PATCH
        strip[:, :, :, left : left + PATCH] = colour[:, :, None, None]


def transformer(heads: int, width: int, codes: int) -> nn.Module:
    """Four blocks; with heads, the attention of the last two passes codebooks."""
    picture = torch.zeros(4, 3, SIDE + PATCH, SIDE)
    data = Data(picture, torch.arange(4) % 2, torch.arange(2), torch.arange(2, 4), ("no", "yes"))
    model: nn.Module = ViT(width=width, depth=DEPTH, heads=4, patch=PATCH)(data)
    if heads:
        put(model, Codebook(codes=codes, heads=heads), [f"blocks.{DEPTH - 2}.out", f"blocks.{DEPTH - 1}.out"])
    return model


def trained(heads: int, width: int, codes: int, count: int, epochs: int, seed: int) -> nn.Module:
    """A transformer after Adam on `count` questions about six objects; the seed decides weights and order."""
    torch.manual_seed(seed)
    model, generator = transformer(heads, width, codes).train(), torch.Generator().manual_seed(seed)
    data = questions(count, TRAINED, generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    for _ in range(epochs):
        for rows in torch.randperm(count, generator=generator).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(data.pictures[rows]), data.answers[rows]).backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: Pictures) -> Mapping[str, float]:
    """Share of right answers to questions of each arity."""
    right = torch.cat([model(rows).argmax(1) for rows in data.pictures.split(256)]) == data.answers
    return {name: float(right[data.arity == at + 1].float().mean()) for at, name in enumerate(ARITIES)}
