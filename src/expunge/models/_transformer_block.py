"""A pre-norm transformer block, causal or not."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class TransformerBlock(nn.Module):
    """Attention and a perceptron of four times the width, each added to the residual stream.

    Args:
        width: Size of the residual stream.
        heads: Attention heads; must divide the width.
        causal: Whether a position sees only itself and earlier ones.
    """

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.act, self.down = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """The residual stream `[b, t, width]` after this block."""
        hidden = hidden + self._attend(self.norm1(hidden))
        update: Tensor = self.down(self.act(self.up(self.norm2(hidden))))
        return hidden + update

    def _attend(self, hidden: Tensor) -> Tensor:
        batch, length, width = hidden.shape
        qkv = self.qkv(hidden).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=self.causal)
        attended: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return attended
