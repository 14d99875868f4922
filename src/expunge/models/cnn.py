"""A small convolutional net for small images: three strided 3 x 3 convolutions and two linear layers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from expunge.base.errors import SpecError
from expunge.base.part import Count
from expunge.core.contracts import Architecture
from expunge.core.data import Data


@dataclass(frozen=True)
class CNN(Architecture):
    """About 0.1 M weights on 28 x 28 images."""

    width: Count = 16
    """Channels of the first convolution; the next two have twice and four times as many."""
    hidden: Count = 128
    """Units of the hidden linear layer."""
    norm: Literal["group", "batch", "none"] = "group"
    """Normalisation after each convolution."""

    def __call__(self, data: Data) -> nn.Sequential:
        """The module for images `[b, c, h, w]` of at least 8 x 8, returning logits `[b, classes]`.

        Raises:
            SpecError: The data are no such images.
        """
        shape = tuple(data.inputs.shape[1:])
        if len(shape) != 3 or min(shape[1:]) < 8:
            raise SpecError(
                f"inputs have shape {list(shape)}",
                where="model (cnn)",
                allowed="images [channels, height, width] of at least 8 x 8",
                remedy="use the model mlp for vectors",
            )
        channels = [shape[0], self.width, 2 * self.width, 4 * self.width]
        convolutions = [layer for i, o in itertools.pairwise(channels) for layer in self._block(i, o)]
        body = nn.Sequential(*convolutions, nn.Flatten())
        with torch.no_grad():
            features = body.eval()(torch.zeros(1, *shape)).shape[1]
        body.train()
        return nn.Sequential(
            *body, nn.Linear(features, self.hidden), nn.ReLU(), nn.Linear(self.hidden, len(data.labels))
        )

    def _block(self, channels: int, out: int) -> list[nn.Module]:
        convolution = nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=self.norm == "none")
        return [convolution, *self._norm(out), nn.ReLU()]

    def _norm(self, channels: int) -> list[nn.Module]:
        if self.norm == "batch":
            return [nn.BatchNorm2d(channels)]
        if self.norm == "group":
            groups = next(g for g in (8, 4, 2, 1) if channels % g == 0)
            return [nn.GroupNorm(groups, channels)]
        return []
