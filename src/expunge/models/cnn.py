"""A small convolutional net for small images: three strided 3 x 3 convolutions and two linear layers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import nn

from expunge.base.errors import SpecError
from expunge.base.part import Count
from expunge.core.contracts import Architecture
from expunge.core.data import Data
from expunge.models._images import Norm, group_count, image_shape, norm_layers


@dataclass(frozen=True)
class CNN(Architecture):
    """About 0.16 M weights on 28 x 28 images."""

    width: Count = 16
    """Channels of the first convolution; the next two have twice and four times as many."""
    hidden: Count = 128
    """Units of the hidden linear layer."""
    norm: Norm = "group"
    """Normalisation after each convolution."""

    def __call__(self, data: Data) -> nn.Sequential:
        """The module for images `[b, c, h, w]` of at least 8 x 8, returning logits `[b, classes]`.

        Raises:
            SpecError: The data are not such images, or are so small that group norm would have one value per group.
        """
        shape, last = image_shape(data, 8, "cnn"), 4 * self.width
        # Three strides of two reduce eight pixels to one.
        if self.norm == "group" and max(shape[1:]) <= 8 and group_count(last) == last:
            finding = (
                f"width = {self.width} leaves one value per group of the last norm on {shape[1]} x {shape[2]} images"
            )
            raise SpecError(finding, where="model (cnn)", allowed="width from 3, or norm = 'none'")
        channels = [shape[0], self.width, 2 * self.width, 4 * self.width]
        convolutions = [layer for i, o in itertools.pairwise(channels) for layer in self._block(i, o)]
        body = nn.Sequential(*convolutions, nn.Flatten())
        with torch.no_grad():
            features = body.eval()(torch.zeros(1, *shape)).shape[1]
        body.train()
        hidden = [nn.Linear(features, self.hidden), nn.ReLU()]
        return nn.Sequential(*body, *hidden, nn.Linear(self.hidden, data.objective.outputs))

    def _block(self, channels: int, out: int) -> list[nn.Module]:
        convolution = nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=self.norm == "none")
        return [convolution, *norm_layers(self.norm, out), nn.ReLU()]
