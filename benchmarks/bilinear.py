"""A bilinear layer against SwiGLU with the same weights: a forward and a backward pass (aim 1.05).

Both are as wide as a perceptron of a small transformer, on 1,024 positions, in float32 on one thread.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks._ratio import compare
from expunge.blocks.bilinear import BilinearLayer
from expunge.studies.bilinear.setup import Gated

ROWS = 1024
SIZES = ((64, 171), (256, 683))
"""Width, and products: two thirds of four times the width."""


def main(repeats: int = 15) -> None:
    torch.set_num_threads(1)
    for width, hidden in SIZES:
        ours, theirs = BilinearLayer(width, hidden, width), Gated(width, hidden, width)
        count, other = (sum(p.numel() for p in m.parameters()) for m in (ours, theirs))
        assert count == other
        ratio = compare(_step(ours, width), _step(theirs, width), repeats)
        print(f"bilinear {width} x {hidden}    {count} weights each, over SwiGLU (aim 1.05): {ratio}")


def _step(module: nn.Module, width: int) -> Callable[[], Tensor]:
    inputs = torch.randn(ROWS, width, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def step() -> Tensor:
        module.zero_grad()
        loss: Tensor = module(inputs).square().mean()
        loss.backward()
        return loss

    return step


if __name__ == "__main__":
    main()
