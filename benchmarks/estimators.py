"""A step through each estimator against one through `torch.nn.functional.gumbel_softmax(hard=True)` (aim: at most 1.3).

Forward and backward of 256 x 64 choices among 16, in float32 on one thread. The noise of ours comes from a generator.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks._ratio import compare
from expunge.numerics.estimators import (
    STGS,
    DecoupledST,
    DecoupledSTGS,
    GumbelRao,
    IdentityST,
    Pathwise,
    ReinMax,
    SoftmaxST,
)

AIM = 1.3
SHAPE = (256, 64, 16)
STEPS = 5
ESTIMATORS: tuple[Pathwise, ...] = (
    IdentityST(),
    SoftmaxST(),
    STGS(),
    DecoupledSTGS(0.5, 2.0),
    DecoupledST(0.5, 2.0),
    ReinMax(),
    GumbelRao(draws=8),
)
"""Gumbel-Rao draws eight relaxed choices where the others draw one, so that the aim is not for it."""


def main(repeats: int = 9) -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    logits, above = (torch.randn(SHAPE, generator=generator) for _ in range(2))
    leaf = logits.requires_grad_()

    def step(choices: Tensor) -> Tensor:
        return torch.autograd.grad((choices * above).sum(), leaf)[0]

    def common() -> None:
        for _ in range(STEPS):
            step(F.gumbel_softmax(leaf, tau=0.7, hard=True))

    for choice in ESTIMATORS:

        def ours(choice: Pathwise = choice) -> None:
            for _ in range(STEPS):
                step(choice(leaf, generator))

        aim = "no aim" if isinstance(choice, GumbelRao) else f"aim {AIM}"
        print(f"estimators {choice.name:<16} {compare(ours, common, repeats)}; {aim}")


if __name__ == "__main__":
    main()
