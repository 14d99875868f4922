"""Base of the objectives without decisions: squared error, and the explained share of the targets' variance."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from expunge.base.part import Positive
from expunge.core.data import Batch, Data
from expunge.core.objective import Metric, Objective

R_SQUARED, ERROR = "r_squared", "absolute_error"


@dataclass(frozen=True)
class Explained(Objective):
    """Squared error of outputs against targets, both flattened to `[b, k]`.

    Knowledge and utility are `r_squared` = 1 - squared error / variance of the training targets: 1 is perfect, and a
    model that always predicts the mean gets 0. The metric has no unit, so one bound of utility fits every data set.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(R_SQUARED, knowledge=True, utility=True),
        Metric(ERROR, unit="target units", better="lower"),
    )
    loss_unit: ClassVar[str] = "squared target units"

    variance: Positive | None = None
    """Mean variance of the training targets' components; by default measured on the data."""

    def bound_to(self, data: Data) -> Self:
        """Measure the variance of the training targets, in one pass in float64."""
        if self.variance is not None:
            return self
        count, first, second = 0, torch.zeros(()), 0.0
        for batch in data.stream(data.train.split(512)):
            targets = self.wanted(batch).to(torch.complex128 if batch.inputs.is_complex() else torch.float64)
            count, first = count + len(targets), first + targets.sum(0)
            second += float(targets.abs().square().sum())
        mean = first / max(count, 1)
        variance = second / max(count * max(mean.numel(), 1), 1) - float(mean.abs().square().mean())
        return replace(self, variance=max(variance, 1e-12))

    @abstractmethod
    def wanted(self, batch: Batch) -> Tensor:
        """The right outputs, `[b, k]`."""

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean squared error of each example, `[b]` in float64, in squared target units."""
        return self.errors(model, batch).double().square().mean(1)

    def answers(self, model: nn.Module, batches: Iterable[Batch]) -> Tensor:
        """The mean output over unseen examples, `[k]`."""
        count, total = 0, torch.zeros(())
        for batch in batches:
            output = self.prediction(model, batch).reshape(batch.size, -1).cpu()
            total = total + output.sum(0, dtype=torch.complex128 if output.is_complex() else torch.float64)
            count += batch.size
        return total / count

    def baseline(self, model: nn.Module, batch: Batch, answers: Tensor) -> dict[str, Tensor]:
        """The explained share if every output were the mean output."""
        gap = torch.abs(self.wanted(batch).cpu() - answers).double()
        return {R_SQUARED: 1 - gap.square().mean(1) / (self.variance or 1.0)}

    def errors(self, model: nn.Module, batch: Batch) -> Tensor:
        """Distance of each component from its target, `[b, k]`.

        Raises:
            SpecError: The outputs have another shape.
        """
        return self.distances(model, self.prediction(model, batch), self.wanted(batch))

    def distances(self, model: nn.Module, output: Tensor, wanted: Tensor) -> Tensor:
        """The same for outputs `[b, ...]` of the model and wanted outputs `[b, k]`."""
        output = output.reshape(len(wanted), -1) if output.numel() == wanted.numel() else output
        if output.shape != wanted.shape:
            raise self.misfit(model, output, wanted)
        # Real outputs do not make complex targets real.
        dtype = wanted.dtype if wanted.is_complex() and not output.is_complex() else output.dtype
        gap = output - wanted.to(output.device, dtype)
        return torch.abs(gap)

    @abstractmethod
    def misfit(self, model: nn.Module, output: Tensor, wanted: Tensor) -> Exception:
        """The error for outputs of another shape."""

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Explained share of the variance, and mean absolute error, per example."""
        errors = self.errors(model, batch).double()
        return {R_SQUARED: 1 - errors.square().mean(1) / (self.variance or 1.0), ERROR: errors.mean(1)}
