"""The input as target: squared error of an autoencoder, and the share of the inputs' variance that it explains."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.base.part import Count
from expunge.core.data import Batch, Data
from expunge.core.objective import wrong_width
from expunge.objectives._explained import Explained


@dataclass(frozen=True)
class Reconstruction(Explained):
    """Outputs have the shape of the inputs; targets are not used. There are no decisions and no wrong targets."""

    components: Count | None = None
    """Numbers per example; by default those of the data."""

    def bound_to(self, data: Data) -> Self:
        """Read size and variance of the inputs."""
        example = data.example
        if not isinstance(example, Tensor) or not (example.is_floating_point() or example.is_complex()):
            raise SpecError("inputs are not one floating-point tensor", where="data.inputs", allowed="[n, ...]")
        return replace(super().bound_to(data), components=example.numel())

    @property
    def outputs(self) -> int:
        """Numbers per example."""
        return self.components or 1

    def wanted(self, batch: Batch) -> Tensor:
        """The inputs, `[b, k]`."""
        inputs: Tensor = batch.inputs
        return inputs.reshape(batch.size, -1)

    def misfit(self, model: nn.Module, output: Tensor, wanted: Tensor) -> Exception:
        return wrong_width(model, output, "the shape of the inputs", wanted.shape[1])
