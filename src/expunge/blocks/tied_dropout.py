"""Example-tied dropout: some hidden channels for all examples, others for some examples only (2307.09542).

A share `fixed` of the channels is on for every example. The other channels are the *memory*. In training, each of them
is on for an example with probability `memory`, and an example has the same channels on every pass. In evaluation the
memory is off. `rem` moves wrong examples into the memory and drops it.

If a norm mixes channels, each group of normalised channels must be entirely in the base or entirely in the memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import msgspec
from torch import nn

from expunge.base.errors import SpecError
from expunge.base.part import Share
from expunge.blocks._channels import channel_dim, channels_of, writer_of
from expunge.blocks._memory import drop_memory, memory_weights
from expunge.blocks._tied_layer import SHARED, TiedLayer, base_channels, base_only, tied_layers, with_memory
from expunge.core.contracts import Block

__all__ = [
    "SHARED",
    "Fixed",
    "TiedDropout",
    "TiedLayer",
    "base_only",
    "drop_memory",
    "memory_weights",
    "tied_layers",
    "with_memory",
]

Fixed = Annotated[float, msgspec.Meta(gt=0, le=1)]
"""A share above 0."""


@dataclass(frozen=True)
class TiedDropout(Block):
    """Example-tied dropout of a module's output."""

    cite: ClassVar[str] = "maini2023localized"

    fixed: Fixed = 0.5
    """Share of the channels that all examples use; the others are memory."""
    memory: Share = 0.0
    """Probability with which a memory channel is on for an example in training; at 0 the memory is only reserved."""
    dim: int | None = None
    """Dimension of the channels in the output. By default the last one behind a linear layer or a layer norm, otherwise
    1, for example behind a convolution."""

    def __call__(self, model: nn.Module, path: str) -> TiedLayer:
        """Make the layer that masks channels.

        Raises:
            SpecError: A norm mixes channels of base and memory.
        """
        writer = writer_of(model, path)
        self._require_whole_groups(writer)
        dim = self.dim if self.dim is not None else channel_dim(writer)
        return TiedLayer(self.fixed, self.memory, dim)

    def _require_whole_groups(self, writer: nn.Module | None) -> None:
        if not isinstance(writer, nn.GroupNorm | nn.LayerNorm) or self.fixed == 1:
            return
        channels = channels_of(writer)
        groups = writer.num_groups if isinstance(writer, nn.GroupNorm) else 1
        if base_channels(channels, self.fixed) % (channels // groups):
            raise SpecError(
                f"found {self.fixed}, which splits a group of normalised channels ({channels} in {groups})",
                where="fixed",
                allowed=f"multiples of 1/{groups}" if groups > 1 else "1",
                remedy="choose another width or another norm, or put the block elsewhere",
            )
