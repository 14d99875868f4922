"""A small vision transformer: patches, learned positions, pre-norm blocks, the mean over patches (2010.11929).

The model classifies the mean over all patches instead of a class token, which is better for small transformers
(2205.01580). REM's model (2505.17730) is `patch = 8, width = 512, depth = 4, heads = 8` with shifted-patch tokens;
these are not implemented here.
The default has 0.20 M weights on 28 x 28 images of one channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.base.part import Count
from expunge.core.contracts import Architecture
from expunge.core.data import Data
from expunge.models._images import image_shape
from expunge.models._transformer_block import TransformerBlock


@dataclass(frozen=True)
class ViT(Architecture):
    """About 0.2 M weights."""

    cite: ClassVar[str] = "dosovitskiy2021vit"

    patch: Count = 4
    """Height and width of a patch in pixels; must divide those of the images."""
    width: Count = 64
    """Size of the residual stream."""
    depth: Count = 4
    """Number of blocks."""
    heads: Count = 4
    """Attention heads; must divide the width."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise SpecError(f"{self.heads} heads do not divide width {self.width}", where="heads")

    def __call__(self, data: Data) -> nn.Module:
        """The module for images `[b, c, h, w]`, returning logits `[b, classes]`.

        Raises:
            SpecError: The data are not images, or patches do not cover them exactly.
        """
        channels, height, width = image_shape(data, self.patch, "vit")
        if height % self.patch or width % self.patch:
            raise SpecError(
                f"patches of {self.patch} do not cover {height} x {width} pixels",
                where="model.patch",
                allowed="a number that divides both",
            )
        count = (height // self.patch) * (width // self.patch)
        patches = nn.Conv2d(channels, self.width, self.patch, stride=self.patch)
        blocks = [TransformerBlock(self.width, self.heads, causal=False) for _ in range(self.depth)]
        return _VisionTransformer(patches, count, nn.Sequential(*blocks), nn.Linear(self.width, data.objective.outputs))


class _VisionTransformer(nn.Module):
    def __init__(self, patches: nn.Conv2d, count: int, blocks: nn.Sequential, head: nn.Linear) -> None:
        super().__init__()
        self.patches, self.blocks, self.head = patches, blocks, head
        self.positions = nn.Parameter(torch.randn(count, head.in_features) * 0.02)
        self.norm = nn.LayerNorm(head.in_features)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits
