"""Numbers as targets: squared error, and the share of the targets' variance that the model explains."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.base.part import Count
from expunge.core.data import Batch, Data
from expunge.core.objective import RELABEL, wrong_width
from expunge.objectives._explained import Explained


@dataclass(frozen=True)
class Regression(Explained):
    """Targets are floating-point numbers `[n]` or `[n, k]`, outputs are `[b]`, `[b, 1]` or `[b, k]`.

    There are no decisions. Wrong targets are drawn uniformly between the smallest and the largest training target.
    """

    provides: ClassVar[frozenset[str]] = frozenset({RELABEL})

    components: Count | None = None
    """Numbers per example; by default those of the data."""
    low: float | None = None
    """Smallest wrong target; by default the smallest target of the training set."""
    high: float | None = None
    """Largest wrong target; by default the largest target of the training set."""

    def bound_to(self, data: Data) -> Self:
        """Check the targets, and take their number, range and variance."""
        if not data.targets.is_floating_point() or data.targets.ndim not in (1, 2):
            raise SpecError(
                f"targets are {data.targets.dtype} {list(data.targets.shape)}",
                where="data.targets",
                allowed="floating-point numbers, [n] or [n, k]",
            )
        if not torch.isfinite(data.targets).all():
            row = int((~torch.isfinite(data.targets)).flatten(1 if data.targets.ndim > 1 else 0).nonzero()[0][0])
            raise SpecError(f"target of example {row} is not finite", where="data.targets", remedy="drop the example")
        known = data.targets[data.train]
        components = 1 if data.targets.ndim == 1 else data.targets.shape[1]
        low, high = float(known.min()), float(known.max())
        return replace(super().bound_to(data), components=components, low=low, high=high)

    @property
    def outputs(self) -> int:
        """Numbers per example."""
        return self.components or 1

    def wanted(self, batch: Batch) -> Tensor:
        """The targets, `[b, k]`."""
        return batch.targets.reshape(batch.size, -1)

    def misfit(self, model: nn.Module, output: Tensor, wanted: Tensor) -> Exception:
        return wrong_width(model, output, f"[batch, {wanted.shape[1]}]", wanted.shape[1])

    def relabel(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Targets drawn uniformly over the range of the training targets."""
        low, high = self.low or 0.0, self.high if self.high is not None else 1.0
        drawn = torch.rand(batch.targets.shape, generator=generator, dtype=batch.targets.dtype)
        return batch._replace(targets=low + (high - low) * drawn)
