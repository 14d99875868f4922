"""ResNet-9 for small images: four convolutions, two residual blocks, one linear layer (the net of REM, 2505.17730).

conv(w) - conv(2w), pool - residual(2w) - conv(4w), pool - conv(8w), pool - residual(8w) - largest value of each channel
- linear. All convolutions are 3 x 3; a residual block holds two of them. At `width` 64, for ten classes of colour
images, it has 6.57 M weights; at the default 16, on one channel, 0.41 M.

The paper masks the output of each convolution and of each residual block: `tied_dropout` at `conv?` and `res?`. Layers
inside a block are not masked. In training, batch norm then sees base and memory channels together, and its running
statistics include both, but evaluation drops the memory. The default, group norm, has no running statistics.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn

from expunge.base.part import Count
from expunge.core.contracts import Architecture
from expunge.core.data import Data
from expunge.models._images import Norm, image_shape, norm_layers


@dataclass(frozen=True)
class ResNet9(Architecture):
    """About 0.4 M weights at the default width; made for images of 28 x 28 and 32 x 32."""

    width: Count = 16
    """Channels of the first convolution; 64 in the paper."""
    norm: Norm = "group"
    """Normalisation after each convolution; the paper's is `batch`."""

    def __call__(self, data: Data) -> nn.Sequential:
        """The module for images `[b, c, h, w]` of at least 8 x 8, returning logits `[b, classes]`.

        Raises:
            SpecError: The data are not such images.
        """
        channels, w = image_shape(data, 8, "resnet9")[0], self.width
        layers: dict[str, nn.Module] = {
            "conv1": self._convolution(channels, w),
            "conv2": self._convolution(w, 2 * w, pool=True),
            "res1": self._residual(2 * w),
            "conv3": self._convolution(2 * w, 4 * w, pool=True),
            "conv4": self._convolution(4 * w, 8 * w, pool=True),
            "res2": self._residual(8 * w),
            "pool": nn.AdaptiveMaxPool2d(1),
            "flatten": nn.Flatten(),
            "head": nn.Linear(8 * w, data.objective.outputs),
        }
        return nn.Sequential(OrderedDict(layers))

    def _convolution(self, channels: int, out: int, *, pool: bool = False) -> nn.Sequential:
        convolution = nn.Conv2d(channels, out, 3, padding=1, bias=self.norm == "none")
        return nn.Sequential(convolution, *norm_layers(self.norm, out), nn.ReLU(), *([nn.MaxPool2d(2)] if pool else []))

    def _residual(self, channels: int) -> _Residual:
        return _Residual(self._convolution(channels, channels), self._convolution(channels, channels))


class _Residual(nn.Sequential):
    """The input plus the output of its layers."""

    def forward(self, inputs: Tensor) -> Tensor:
        update: Tensor = super().forward(inputs)
        return inputs + update
