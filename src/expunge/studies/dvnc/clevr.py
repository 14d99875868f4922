"""Sort-of-CLEVR: questions about coloured shapes in a picture, for a transformer whose attention speaks in codes.

A picture of 32 x 32 pixels shows discs and squares, each with a colour of its own and in a patch of its own. Further
channels mark three of them, the first, the second and the third. The net answers all nine questions about them at once,
yes or no. Unary questions concern the first object, binary the first two, ternary all three.

    unary      is it a square?  left of the middle?  in the upper half?
    binary     have both the same shape?  is the first left of the second?  are they closer than a third of the picture?
    ternary    is the first closer to the second than to the third?  do all have one shape?  is the first the leftmost?

The original names objects by colour, one question at a time. So asked, transformers of this size learned nothing within
the few hundred steps that the preset `cpu` can pay.
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
CHANNELS = 3 + 3
"""Colours, and marks of the objects asked about."""
BATCH, DEPTH = 64, 4
ARITIES = ("unary", "binary", "ternary")
QUESTIONS = tuple(f"{arity} {kind}" for arity in ARITIES for kind in range(3))


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures with marks `[n, CHANNELS, 32, 32]`, and answers `[n, arity, 3]`, 0 or 1."""

    pictures: Tensor
    answers: Tensor


def questions(count: int, objects: int, generator: torch.Generator) -> Pictures:
    """Random scenes, with three objects each that the questions are about."""
    cells = torch.rand(count, (SIDE // PATCH) ** 2, generator=generator).argsort(1)[:, :objects]
    # Each object lies within a patch of its own, so that none overlap and a token knows one object at most.
    within = torch.randint(RADIUS, PATCH - RADIUS, (count, objects, 2), generator=generator)
    places = torch.stack([cells // (SIDE // PATCH), cells % (SIDE // PATCH)], -1) * PATCH + within
    squares = torch.rand(count, objects, generator=generator) < 0.5
    about = torch.rand(count, objects, generator=generator).argsort(1)[:, :3]
    rows = torch.arange(count).unsqueeze(1)
    pictures = torch.zeros(count, CHANNELS, SIDE, SIDE)
    colours = COLOURS[torch.rand(count, len(COLOURS), generator=generator).argsort(1)[:, :objects]]
    _draw(pictures, places, squares, torch.cat([colours, F.one_hot(about, objects).transpose(1, 2)], -1))
    return Pictures(pictures, _answers(places[rows, about].float(), squares[rows, about]).float())


def _answers(at: Tensor, shape: Tensor) -> Tensor:
    """The answers `[n, arity, 3]` bool; `at` is `[n, 3, (y, x)]`, in pixels."""
    first, second, third = at.unbind(1)
    near, far = (first - second).norm(dim=1), (first - third).norm(dim=1)
    unary = [shape[:, 0], first[:, 1] < SIDE / 2, first[:, 0] < SIDE / 2]
    binary = [shape[:, 0] == shape[:, 1], first[:, 1] < second[:, 1], near < SIDE / 3]
    ternary = [near < far, (shape == shape[:, :1]).all(1), first[:, 1] < torch.minimum(second[:, 1], third[:, 1])]
    return torch.stack([torch.stack(kinds, 1) for kinds in (unary, binary, ternary)], 1)


def _draw(pictures: Tensor, places: Tensor, squares: Tensor, channels: Tensor) -> None:
    """Add each object, with its values of all channels, `[n, objects, CHANNELS]`."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    for place, square, values in zip(*(t.unbind(1) for t in (places, squares, channels)), strict=True):
        down, right = (axis - place[:, at, None, None] for at, axis in enumerate((y, x)))
        disc = down.square() + right.square() <= RADIUS**2
        box = (down.abs() <= RADIUS) & (right.abs() <= RADIUS)
        inside = torch.where(square[:, None, None], box, disc)
        pictures += inside.unsqueeze(1) * values[:, :, None, None]


def transformer(heads: int, width: int, codes: int) -> nn.Module:
    """Four blocks; with heads, the attention of the last two passes codebooks."""
    picture = torch.zeros(4, CHANNELS, SIDE, SIDE)
    data = Data(picture, torch.arange(4), torch.arange(2), torch.arange(2, 4), QUESTIONS)
    model: nn.Module = ViT(width=width, depth=DEPTH, heads=4, patch=PATCH)(data)
    if heads:
        put(model, Codebook(codes=codes, heads=heads), [f"blocks.{DEPTH - 2}.out", f"blocks.{DEPTH - 1}.out"])
    return model


def trained(heads: int, width: int, codes: int, steps: int, rate: float, seed: int) -> nn.Module:
    """A transformer after Adam on fresh pictures of six objects; the seed decides weights and pictures."""
    torch.manual_seed(seed)
    model, generator = transformer(heads, width, codes).train(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        data = questions(BATCH, TRAINED, generator)
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(data.pictures), data.answers.flatten(1)).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: Pictures) -> Mapping[str, float]:
    """Share of right answers to questions of each arity."""
    said = torch.cat([model(rows) for rows in data.pictures.split(256)]) > 0
    right = (said == data.answers.flatten(1).bool()).float().view(data.answers.shape)
    return dict(zip(ARITIES, right.mean((0, 2)).tolist(), strict=True))
