"""Gated convolutions with real weights on features of several components: Rotating Features, complex autoencoders.

A feature map is `[b, n, c, h, w]`: each of c features has n components, whose length is how strongly it is there and
whose direction says to which object it belongs. The image is the first component of the input, and the others are 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.models._scene_layout import LayerShape, SceneLayout

TINY = 1e-12


class GatedConv(nn.Module):
    """m psi / |psi| with m = relu(norm((|psi| + chi) / 2)), psi = W z + b and chi = W |z|.

    chi lets features whose directions agree be stronger than those whose directions differ.

    Args:
        shape: Channels, kernel, stride, padding, and the size to which the input is upsampled before.
        dims: Number of components.
        polar: Whether biases are of the length and the angle (two components only), and not of each component.
    """

    def __init__(self, shape: LayerShape, dims: int, *, polar: bool = False) -> None:
        super().__init__()
        self.shape = shape
        self.conv = nn.Conv2d(
            shape.inputs, shape.outputs, shape.kernel, stride=shape.stride, padding=shape.padding, bias=False
        )
        bound = 1 / (shape.inputs * shape.kernel**2) ** 0.5
        self.length_bias = nn.Parameter(torch.empty(shape.outputs).uniform_(-bound, bound)) if polar else None
        self.turn = nn.Parameter(torch.zeros(shape.outputs)) if polar else None
        drawn = torch.empty(dims, shape.outputs).uniform_(-bound, bound)
        self.bias = None if polar else nn.Parameter(drawn)
        self.norm = nn.BatchNorm2d(shape.outputs)

    def forward(self, z: Tensor) -> Tensor:
        """`[b, n, inputs, h, w]` to `[b, n, outputs, h', w']`."""
        both = torch.cat([z, lengths(z).unsqueeze(1)], 1)
        flat = both.flatten(0, 1)
        if self.shape.upsampled is not None:
            flat = F.interpolate(flat, self.shape.upsampled, mode="nearest")
        products = self.conv(flat).unflatten(0, both.shape[:2])
        psi, chi = products[:, :-1], products[:, -1]
        if self.bias is not None:
            psi = psi + self.bias[..., None, None]
            size = lengths(psi)
        else:
            psi, size, chi = self._polar(psi, chi)
        scaled: Tensor = psi * (torch.relu(self.norm((size + chi) / 2)) / lengths(psi)).unsqueeze(1)
        return scaled

    def _polar(self, psi: Tensor, chi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert self.turn is not None and self.length_bias is not None
        cos, sin = (part.view(-1, 1, 1) for part in (self.turn.cos(), self.turn.sin()))
        turned = torch.stack([cos * psi[:, 0] - sin * psi[:, 1], sin * psi[:, 0] + cos * psi[:, 1]], 1)
        bias = self.length_bias.view(-1, 1, 1)
        return turned, lengths(turned) + bias, chi + bias


class GatedNet(nn.Module):
    """An autoencoder of gated convolutions; the reconstruction is read from the lengths of the last hidden features.

    Args:
        layers: Shapes of all layers.
        dims: Number of components.
        polar: Which biases the layers have, as in `GatedConv`.
    """

    def __init__(self, layers: SceneLayout, dims: int, *, polar: bool) -> None:
        super().__init__()
        self.dims = dims
        self.encoder = nn.Sequential(*(GatedConv(layer, dims, polar=polar) for layer in layers.encoder))
        self.decoder = nn.Sequential(*(GatedConv(layer, dims, polar=polar) for layer in layers.decoder))
        self.output = nn.Conv2d(layers.output.inputs, layers.output.outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        """The reconstruction in [0, 1], `[b, c, h, w]`."""
        return self.read_out(self.features(images)[1])

    def read_out(self, features: Tensor) -> Tensor:
        """The image of the decoder's features."""
        return torch.sigmoid(self.output(lengths(features)))

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What encoder and decoder return, each `[b, n, c, h, w]`."""
        others = images.new_zeros(len(images), self.dims - 1, *images.shape[1:])
        code: Tensor = self.encoder(torch.cat([images.unsqueeze(1), others], 1))
        return code, self.decoder(code)

    def directions(self, images: Tensor) -> Tensor:
        """Unit vectors of the decoder's features, `[b, n d, h, w]`: what clusters of directions are made of."""
        return unit(self.features(images)[1])


def lengths(z: Tensor) -> Tensor:
    """|z| over the components: `[b, n, c, h, w]` to `[b, c, h, w]`."""
    size: Tensor = (z.square().sum(1) + TINY).sqrt()
    return size


def unit(z: Tensor) -> Tensor:
    """Unit vectors z / |z| with components and channels joined: `[b, n c, h, w]`."""
    return (z / lengths(z).unsqueeze(1)).flatten(1, 2)
