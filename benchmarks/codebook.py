"""A codebook against a reference implementation of the same loss: a forward and a backward pass (aim 1).

vector-quantize-pytorch is not a dependency; where it is installed (see tests/oracles/test_vector_quantize.py), it is
measured with the same codebook. The reference takes the steps that its documentation and code describe for a learnable
codebook: all distances with their roots, a one-hot choice, a product with the
codebook, straight-through by `x + (q - x).detach()`, and the two terms of the loss in autograd, here with the paper's
weights. Both have the same codebook, and must choose the same codes. 1,024 vectors, in float32 on one thread.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._ratio import compare
from expunge.blocks.codebook import CodebookLayer

ROWS = 1024
SIZES = ((64, 4, 64), (256, 8, 256))
"""Width, heads and codes."""


class Reference(nn.Module):
    """Learnable codebook with heads, by one-hot products and autograd."""

    def __init__(self, layer: CodebookLayer) -> None:
        super().__init__()
        self.heads, self.shared = layer.heads, layer.books == 1
        self.codebook = nn.Parameter(layer.codebook.detach().clone())

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes `[n, width]`, indices, and the loss."""
        x = hidden.view(len(hidden), self.heads, -1)
        rows = x.reshape(1, -1, x.shape[-1]) if self.shared else x.transpose(0, 1)
        squares = rows.square().sum(-1, keepdim=True) + self.codebook.square().sum(-1).unsqueeze(1)
        distance = (squares - 2 * rows @ self.codebook.transpose(1, 2)).clamp(min=0).sqrt()
        index = distance.argmin(-1)
        chosen = F.one_hot(index, self.codebook.shape[1]).to(rows) @ self.codebook
        loss = (chosen - rows.detach()).square().sum(-1).mean() + 0.25 * (rows - chosen.detach()).square().sum(
            -1
        ).mean()
        coded = rows + (chosen - rows).detach()
        return (coded if self.shared else coded.transpose(0, 1)).reshape(hidden.shape), index, loss


def main(repeats: int = 15) -> None:
    torch.set_num_threads(1)
    for width, heads, codes in SIZES:
        for shared in (True, False):
            torch.manual_seed(0)
            inputs = torch.randn(ROWS, width)
            layer = CodebookLayer(width, heads, codes, shared=shared)
            layer.train()(inputs)
            theirs = Reference(layer)
            index = layer.indices(inputs)
            assert torch.equal(index.reshape(1, -1) if shared else index.T, theirs(inputs)[1])
            ratio = compare(_ours(layer, inputs), _theirs(theirs, inputs), repeats)
            name = "shared" if shared else "one a head"
            print(f"codebook {width}, {heads} heads, {codes} codes, {name}    over the reference (aim 1): {ratio}")
            if importlib.util.find_spec("vector_quantize_pytorch"):
                ratio = compare(_ours(layer, inputs), _package(layer, inputs), repeats)
                print(f"                                    over vector-quantize-pytorch (aim 1): {ratio}")


def _package(layer: CodebookLayer, inputs: Tensor) -> Callable[[], Tensor]:
    from vector_quantize_pytorch import VectorQuantize

    width, codes = inputs.shape[1], layer.codebook.shape[1]
    package = VectorQuantize(
        dim=width, codebook_size=codes, heads=layer.heads, codebook_dim=width // layer.heads,
        separate_codebook_per_head=layer.books > 1, learnable_codebook=True, ema_update=False, commitment_weight=0.25,
    ).train()  # fmt: skip
    with torch.no_grad():
        package._codebook.embed.copy_(layer.codebook.reshape(package._codebook.embed.shape))
    given = inputs.clone().requires_grad_()

    def step() -> Tensor:
        package.zero_grad()
        coded, _, losses = package(given[None])
        loss: Tensor = coded.square().mean() + losses.sum()
        loss.backward()
        return loss

    return step


def _ours(layer: CodebookLayer, inputs: Tensor) -> Callable[[], Tensor]:
    given = inputs.clone().requires_grad_()

    def step() -> Tensor:
        layer.zero_grad()
        loss: Tensor = layer(given).square().mean()
        loss.backward()
        return loss

    return step


def _theirs(reference: Reference, inputs: Tensor) -> Callable[[], Tensor]:
    given = inputs.clone().requires_grad_()

    def step() -> Tensor:
        reference.zero_grad()
        coded, _, own = reference(given)
        loss: Tensor = coded.square().mean() + own
        loss.backward()
        return loss

    return step


if __name__ == "__main__":
    main()
