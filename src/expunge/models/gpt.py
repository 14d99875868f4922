"""A small GPT: pre-norm transformer blocks, learned positions, tied embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.base.errors import SpecError
from expunge.base.part import Count
from expunge.core.contracts import Architecture
from expunge.core.data import Data


@dataclass(frozen=True)
class GPT(Architecture):
    """About 0.2 M weights on bytes."""

    width: Count = 64
    """Size of the residual stream."""
    layers: Count = 4
    """Number of blocks."""
    heads: Count = 4
    """Attention heads; must divide the width."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise SpecError(f"{self.heads} heads do not divide width {self.width}", where="heads")

    def __call__(self, data: Data) -> nn.Module:
        """The module for tokens `[b, t]`, returning logits `[b, t, vocabulary]`.

        Raises:
            SpecError: The data are no tokens.
        """
        if data.kind != "tokens":
            raise SpecError("the data are no tokens", where="model (gpt)", allowed="a text data set")
        return _Transformer(len(data.labels), data.inputs.shape[1], self.width, self.layers, self.heads)


class _Transformer(nn.Module):
    def __init__(self, vocabulary: int, context: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.05)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        logits: Tensor = self.head(self.norm(self.blocks(hidden)))
        return logits


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self._attend(self.norm1(hidden))
        update: Tensor = self.down(F.gelu(self.up(self.norm2(hidden))))
        return hidden + update

    def _attend(self, hidden: Tensor) -> Tensor:
        batch, length, width = hidden.shape
        qkv = self.qkv(hidden).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=True)
        attended: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return attended
