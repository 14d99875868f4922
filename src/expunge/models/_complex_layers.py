"""Complex convolutions with polar biases and modReLU, computed on pairs of real channels (SynCx, 2405.17283).

A complex image of c channels is a real tensor `[b, 2 c, h, w]`: real parts, then imaginary parts. A product with W is
one real convolution with [[Re W, -Im W], [Im W, Re W]]. That is native complex arithmetic in another order of sums, and
faster (`python -m benchmarks complex`).

Where |u| + bias is negative, its absolute value is the magnitude, and the phase stays. The authors' code lets it be
negative, which turns the phase by pi. With 0 in its place nets died in training: every output was 0. The direction is
u / |u|, and not an angle, so that gradients stay finite near 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.models._scene_layout import LayerShape

TINY = 1e-12
"""Added to squared magnitudes: below 1e-6 a magnitude has hardly a direction."""
THRESHOLD = -0.1
"""Initial threshold of modReLU."""


class PolarConv(nn.Module):
    """| |W v| + b_mu | exp(i (arg W v + b_phi)), and behind it modReLU: relu(|u| + d) exp(i arg u).

    Args:
        shape: Channels, kernel, stride, padding, and the size to which the input is upsampled before.
        activated: Whether modReLU follows.
        real: Whether weights are real and there is no bias of the phase: both parts of the input are treated alike.
    """

    def __init__(self, shape: LayerShape, *, activated: bool = True, real: bool = False) -> None:
        super().__init__()
        self.shape = shape
        outputs, fan_in = shape.outputs, shape.inputs * shape.kernel**2
        scale = 1 / math.sqrt(fan_in)
        size = (outputs, shape.inputs, shape.kernel, shape.kernel)
        # Rayleigh magnitudes, and uniform phases: both parts are Gaussian.
        parts = scale * torch.randn(2, *size)
        self.weight = nn.Parameter(parts[0] * math.sqrt(2) if real else torch.complex(parts[0], parts[1]))
        self.magnitude_bias = nn.Parameter(torch.empty(outputs).uniform_(-scale, scale))
        self.phase_bias = None if real else nn.Parameter(torch.zeros(outputs))
        self.threshold = nn.Parameter(torch.full((outputs,), THRESHOLD)) if activated else None

    def forward(self, pairs: Tensor, kernel: Tensor | None = None) -> Tensor:
        """`[b, 2 inputs, h, w]` to `[b, 2 outputs, h', w']`; a net that runs several times makes the kernel once."""
        if self.shape.upsampled is not None:
            # The nearest neighbour of a complex number is that of its magnitude and of its phase.
            pairs = F.interpolate(pairs, self.shape.upsampled, mode="nearest")
        kernel = self.kernel(pairs.dtype) if kernel is None else kernel
        product = F.conv2d(pairs, kernel, stride=self.shape.stride, padding=self.shape.padding).unflatten(1, (2, -1))
        size = (product.square().sum(1) + TINY).sqrt()
        # `Module.double` changes real parameters only: the type of the input decides.
        magnitude = (size + self.magnitude_bias.to(size).view(-1, 1, 1)).abs()
        if self.threshold is not None:
            magnitude = torch.relu(magnitude + self.threshold.to(size).view(-1, 1, 1))
        scaled: Tensor = product * (magnitude / size).unsqueeze(1)
        return scaled.flatten(1, 2)

    def kernel(self, dtype: torch.dtype) -> Tensor:
        """Real kernels of exp(i b_phi) W, `[2 outputs, 2 inputs, k, k]`: they turn every product by b_phi."""
        if self.phase_bias is None:
            weight = self.weight.to(dtype)
            return _block(weight, torch.zeros_like(weight))
        turned = self.weight * torch.polar(torch.ones_like(self.phase_bias), self.phase_bias).view(-1, 1, 1, 1)
        return _block(turned.real.to(dtype), turned.imag.to(dtype))


def _block(real: Tensor, imag: Tensor) -> Tensor:
    return torch.cat([torch.cat([real, -imag], 1), torch.cat([imag, real], 1)])


def magnitudes(pairs: Tensor) -> Tensor:
    """|z| of pairs `[b, 2 c, h, w]`: `[b, c, h, w]`."""
    size: Tensor = (pairs.unflatten(1, (2, -1)).square().sum(1) + TINY).sqrt()
    return size


def directions(pairs: Tensor) -> Tensor:
    """Unit numbers z / |z|, as pairs `[b, 2 c, h, w]`; 0 where z is 0."""
    unit: Tensor = pairs.unflatten(1, (2, -1)) / magnitudes(pairs).unsqueeze(1)
    return unit.flatten(1, 2)
