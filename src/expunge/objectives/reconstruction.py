"""The input as target: squared error of an autoencoder, and the share of the inputs' variance that it explains.

A model that reconstructs several times, as `syncx` does, returns all reconstructions, `[b, t, ...]`. Each of them
counts in the loss, and the last one is measured.
"""

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

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean squared error of each example, over all reconstructions, `[b]` in float64."""
        output, wanted = super().prediction(model, batch), self.wanted(batch)
        if _several(output, batch):
            output, wanted = output.flatten(0, 1), wanted.repeat_interleave(output.shape[1], 0)
        squares = self.distances(model, output, wanted).double().square()
        return squares.view(batch.size, -1).mean(1)

    def prediction(self, model: nn.Module, batch: Batch) -> Tensor:
        """The reconstruction; of several, the last one."""
        output = super().prediction(model, batch)
        return output[:, -1] if _several(output, batch) else output

    def wanted(self, batch: Batch) -> Tensor:
        """The inputs, `[b, k]`."""
        inputs: Tensor = batch.inputs
        return inputs.reshape(batch.size, -1)

    def misfit(self, model: nn.Module, output: Tensor, wanted: Tensor) -> Exception:
        return wrong_width(model, output, "the shape of the inputs", wanted.shape[1])


def _several(output: Tensor, batch: Batch) -> bool:
    """Whether the output has a dimension for reconstructions behind that of examples."""
    inputs: Tensor = batch.inputs
    return output.ndim == inputs.ndim + 1 and output[:, 0].numel() == inputs.numel()
