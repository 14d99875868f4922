"""The layers of all autoencoders of scenes, which differ only in what a layer computes (SynCx, 2405.17283).

Encoder: three 3 x 3 convolutions with stride 2 and no padding. Decoder: three 3 x 3 convolutions, each behind a nearest
neighbour upsampling, to a quarter, a half and the whole of the image's size. Output: a 1 x 1 convolution.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from expunge.base.errors import SpecError
from expunge.core.data import Data
from expunge.models._images import image_shape

SMALLEST = 15
"""Three strides of two without padding reduce 15 pixels to one."""

Size = tuple[int, int]


class LayerShape(NamedTuple):
    """One layer: channels, kernel, stride and padding, and the size to which its input is upsampled before."""

    inputs: int
    outputs: int
    kernel: int = 3
    stride: int = 1
    padding: int = 0
    upsampled: Size | None = None


class SceneLayout(NamedTuple):
    """Layers of the encoder and of the decoder, and the output layer, which has no activation."""

    encoder: list[LayerShape]
    decoder: list[LayerShape]
    output: LayerShape


def layout(shape: tuple[int, int, int], width: int, *, bottleneck: bool = True, extra: bool = False) -> SceneLayout:
    """The layers for images `[channels, height, width]`.

    Args:
        shape: Shape of an image.
        width: Channels of the first and the last hidden layer; those between have twice as many.
        bottleneck: Without it, no layer changes the size of the image.
        extra: Whether a 1 x 1 layer follows the decoder, as in the paper for images of 64 and 96 pixels.
    """
    channels, height, wide = shape
    sizes: list[Size | None] = [(height // part, wide // part) if bottleneck else None for part in (4, 2, 1)]
    stride, padding = (2, 0) if bottleneck else (1, 1)
    pairs = ((channels, width), (width, 2 * width), (2 * width, 2 * width))
    encoder = [LayerShape(i, o, stride=stride, padding=padding) for i, o in pairs]
    pairs = ((2 * width, 2 * width), (2 * width, width), (width, width))
    decoder = [LayerShape(i, o, padding=1, upsampled=size) for (i, o), size in zip(pairs, sizes, strict=True)]
    if extra:
        decoder.append(LayerShape(width, width, kernel=1))
    return SceneLayout(encoder, decoder, LayerShape(width, channels, kernel=1))


def scene_shape(data: Data, name: str) -> tuple[int, int, int]:
    """Channels, height and width of the data's images.

    Raises:
        SpecError: The data are not images, the images are too small for the strides, or the objective does not want
            outputs in the shape of the inputs.
    """
    shape = image_shape(data, SMALLEST, name)
    if data.objective.outputs != math.prod(shape):
        raise SpecError(
            f"the objective {type(data.objective).__name__} wants {data.objective.outputs} outputs per example",
            where=f"model ({name})",
            allowed=f"an objective that wants images back, {list(shape)}",
            remedy='add [objective] with name = "reconstruction"',
        )
    return shape
