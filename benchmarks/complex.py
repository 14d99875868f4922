"""Block-real against native complex convolutions, forward and backward; and scenes per second against training's need.

Both compute the same product of complex weights and complex images, in float32 on one thread. The pairs of channels
that SynCx works on need no conversion; the native one gets complex tensors.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._ratio import compare
from expunge.data.tetrominoes import Tetrominoes
from expunge.models.syncx import SynCx
from expunge.objectives.reconstruction import Reconstruction
from expunge.train.segmenter import Schedule, train_autoencoder

SIZES = ((16, 8, 18), (16, 16, 18), (16, 64, 35))
"""Images, channels and side: of the study's nets, and of the paper's."""
SCENES, STEPS, BATCH = 2000, 20, 16


def main(repeats: int = 15) -> None:
    torch.set_num_threads(1)
    for images, channels, side in SIZES:
        ours, theirs = _block(images, channels, side), _native(images, channels, side)
        torch.testing.assert_close(ours(), theirs(), rtol=1e-3, atol=1e-3)
        ratio = compare(ours, theirs, repeats)
        print(f"complex {images} x {channels} x {side}    block-real over native: {ratio}")
    start = time.perf_counter()
    data = Tetrominoes(train=SCENES, test=1, cells=6, pixels=3)()
    drawn = SCENES / (time.perf_counter() - start)
    net = SynCx()(data.judged_by(Reconstruction()))
    start = time.perf_counter()
    train_autoencoder(net, data.inputs, Schedule(steps=STEPS, batch_size=BATCH), torch.Generator().manual_seed(0))
    used = STEPS * BATCH / (time.perf_counter() - start)
    print(
        f"scenes 18 x 18    {drawn:.0f} drawn a second, {used:.0f} used by training: {drawn / used:.1f} times the need"
    )


def _weights(images: int, channels: int, side: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (images, channels, side, side), (channels, channels, 3, 3)
    inputs, weight = (torch.randn(2, *shape, generator=generator) for shape in shapes)
    return inputs, weight


def _block(images: int, channels: int, side: int) -> Callable[[], Tensor]:
    inputs, weight = _weights(images, channels, side)
    pairs = torch.cat(list(inputs), 1).requires_grad_()
    complex_weight = nn.Parameter(torch.complex(*weight))

    def step() -> Tensor:
        real, imag = complex_weight.real, complex_weight.imag
        block = torch.cat([torch.cat([real, -imag], 1), torch.cat([imag, real], 1)])
        loss = F.conv2d(pairs, block, padding=1).square().mean() * 2
        loss.backward()
        return loss.detach()

    return step


def _native(images: int, channels: int, side: int) -> Callable[[], Tensor]:
    inputs, weight = _weights(images, channels, side)
    z, complex_weight = torch.complex(*inputs).requires_grad_(), nn.Parameter(torch.complex(*weight))

    def step() -> Tensor:
        loss = F.conv2d(z, complex_weight, padding=1).abs().square().mean()
        loss.backward()
        return loss.detach()

    return step


if __name__ == "__main__":
    main()
