"""A plain convolutional autoencoder with the layers of `syncx`: the control without phases."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.base.part import Count
from expunge.core.contracts import Architecture
from expunge.core.data import Data
from expunge.models._scene_layout import LayerShape, SceneLayout, layout, scene_shape


@dataclass(frozen=True)
class ConvAE(Architecture):
    """Convolutions with ReLU; the output is a sigmoid."""

    width: Count = 11
    """Channels of the first and the last hidden layer; 11 has about as many weights as `syncx` at its default."""
    extra: bool = False
    """Whether a 1 x 1 layer follows the decoder."""

    def __call__(self, data: Data) -> ConvAENet:
        """The module from images `[b, c, h, w]` in [0, 1] to their reconstructions.

        Raises:
            SpecError: The data are no images, are smaller than 15 x 15, or the objective does not want images.
        """
        return ConvAENet(layout(scene_shape(data, "conv_ae"), self.width, extra=self.extra))


class ConvAENet(nn.Module):
    """Encoder, decoder, and a 1 x 1 convolution with a sigmoid."""

    def __init__(self, layers: SceneLayout) -> None:
        super().__init__()
        self.hidden = nn.Sequential(*(_layer(shape) for shape in (*layers.encoder, *layers.decoder)))
        self.output = nn.Conv2d(layers.output.inputs, layers.output.outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        """The reconstruction in [0, 1], `[b, c, h, w]`."""
        return torch.sigmoid(self.output(self.hidden(images)))

    def directions(self, images: Tensor) -> Tensor:
        """The decoder's features as unit vectors over channels, `[b, d, h, w]`."""
        return F.normalize(self.hidden(images), dim=1, eps=1e-6)


def _layer(shape: LayerShape) -> nn.Sequential:
    conv = nn.Conv2d(shape.inputs, shape.outputs, shape.kernel, stride=shape.stride, padding=shape.padding)
    grown = [nn.Upsample(shape.upsampled, mode="nearest")] if shape.upsampled is not None else []
    return nn.Sequential(*grown, conv, nn.ReLU())
