"""A small GPT: pre-norm transformer blocks, learned positions, tied embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.base.part import Count
from expunge.core.contracts import Architecture
from expunge.core.data import Data
from expunge.models._transformer_block import TransformerBlock


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
            SpecError: The data are not tokens.
        """
        if not data.has_tokens:
            raise SpecError("the data are not tokens", where="model (gpt)", allowed="a text data set")
        return _CausalTransformer(data.objective.outputs, data.shape[0], self.width, self.layers, self.heads)


class _CausalTransformer(nn.Module):
    def __init__(self, vocabulary: int, context: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, causal=True) for _ in range(layers)))
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
