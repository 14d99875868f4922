"""What architectures with example-tied dropout share: two settings, the masks, and ids that find their way to them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.base.part import Share
from expunge.core.contracts import Architecture
from expunge.core.forward import accepts_ids
from expunge.core.tied import TiedDropout, base_channels
from expunge.models._images import Norm, group_count

Fixed = Annotated[float, msgspec.Meta(gt=0, le=1)]
"""A share above 0."""


class Chain(nn.Sequential):
    """Layers in sequence; those that take ids get them."""

    def forward(self, inputs: Tensor, ids: Tensor | None = None) -> Tensor:
        """The last layer's output, for examples `[b, ...]` with ids `[b]`."""
        for layer in self:
            inputs = layer(inputs, ids=ids) if accepts_ids(layer) else layer(inputs)
        return inputs


@dataclass(frozen=True)
class TiedArchitecture(Architecture):
    """Base of the architectures whose hidden channels can be tied to examples."""

    fixed: Fixed = field(default=1.0, kw_only=True)
    """Share of each hidden layer's channels that all examples use; below 1, the others are memory (REM: 0.5)."""
    memory: Share = field(default=0.0, kw_only=True)
    """Probability with which a memory channel is on for an example in training; at 0 the memory is only reserved."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fixed == 1 and self.memory:
            raise SpecError(f"found {self.memory} where fixed is 1", where="memory", remedy="set fixed to 0.5, say")

    def fingerprint(self) -> dict[str, Any]:
        """Without the two settings where they say nothing, so that what was stored before they existed is found."""
        found = super().fingerprint()
        if self.fixed == 1:
            found["settings"] = {k: v for k, v in found["settings"].items() if k not in ("fixed", "memory")}
        return found

    def tied(self, channels: int, norm: Norm = "none") -> list[nn.Module]:
        """The mask of a hidden layer with so many channels after such a norm: one layer, or none.

        Raises:
            SpecError: A group of the norm would hold channels of both sorts, and so mix memory into the base.
        """
        if self.fixed == 1:
            return []
        if norm == "group" and base_channels(channels, self.fixed) % (channels // group_count(channels)):
            groups = group_count(channels)
            raise SpecError(
                f"found {self.fixed}, which splits a group of normalised channels ({channels} in {groups})",
                where="model.fixed",
                allowed=f"multiples of 1/{groups}" if groups > 1 else "1",
                remedy="choose another width, or norm = none",
            )
        return [TiedDropout(channels, self.fixed, self.memory)]

    def chain(self, layers: Iterable[nn.Module]) -> nn.Sequential:
        """The layers in sequence; without memory as plain as ever."""
        return nn.Sequential(*layers) if self.fixed == 1 else Chain(*layers)
