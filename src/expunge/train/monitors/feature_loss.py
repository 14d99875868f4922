"""An alarm for features that fade while the loss stays low.

In long training a first layer may lose a direction that it had learned, while the second layer grows and compensates.
The loss does not rise, so it does not show the change (`expunge.numerics.fading` is a model in which this happens).
Alignment is the share of the first layer's norm in the span of reference directions, |W P|_F / |W|_F. It is 1 if all
rows are in the span, and sqrt(k / d) for random rows, k directions and d inputs. If all rows have the same norm and the
same cosine to one direction, alignment is that cosine.

The alarm is on if, since the peak of alignment, alignment fell by a tenth (`drop`), the second layer's norm grew, and
the loss did not rise. A peak counts only above twice the alignment of random rows.

Cost: per measurement one forward pass over the given examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError, unknown
from expunge.base.part import Count
from expunge.core.contracts import Monitor
from expunge.core.data import Data
from expunge.train.monitors._measure import (
    MeanLoss,
    fixed,
    mean_cross_entropy,
    mean_over,
    require_every,
    sample,
    untouched,
)


@dataclass(frozen=True)
class FeatureLoss(Monitor):
    """Share of the first layer in the span of the class means, with an alarm if it falls."""

    every: Count = 50
    """Steps between measurements."""
    examples: Count = 200
    """Training examples for the loss and the class means, drawn once."""
    first: str | None = None
    """Path of the layer whose alignment is measured; by default the first with a weight matrix."""
    second: str | None = None
    """Path of the layer whose norm is measured; by default the next with a weight matrix."""
    drop: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.1
    """Alarm if alignment falls by this share of its peak."""

    def __call__(self, data: Data, ids: Tensor, optimizer: torch.optim.Optimizer, seed: int) -> FeatureLossMonitor:
        """The monitor of one training.

        Raises:
            SpecError: The data have no classes.
        """
        if not data.has_classes:
            remedy, name = "leave this monitor out", type(data.objective).__name__
            raise SpecError(
                f"the objective is {name}", where="feature_loss", allowed="data with classes", remedy=remedy
            )
        batches = sample(data, ids, self.examples, seed)
        directions = class_directions(torch.cat([b.inputs for b in batches]), torch.cat([b.targets for b in batches]))
        return FeatureLossMonitor(
            mean_cross_entropy(data),
            batches,
            directions,
            first=self.first,
            second=self.second,
            every=self.every,
            drop=self.drop,
        )


class FeatureLossMonitor:
    """Records alignment, loss and the second layer's norm every `every` steps, and the steps with an alarm.

    Args:
        loss: Maps the module and a batch to the batch's mean loss, a scalar.
        batches: The examples to measure the loss on; preferably examples that training does not see.
        directions: `[k, d]` or `[d]` in the space of the first layer's inputs: `class_directions(x, y)`, a teacher's,
            or the weights of a probe. Only their span matters, not the basis.
        first: Path of the layer whose alignment is measured; by default the first with a weight matrix.
        second: Path of the layer whose norm is measured; by default the next with a weight matrix.
        every: Steps between measurements; calls at other steps do nothing.
        drop: Alarm if alignment falls by this share of its peak.

    Raises:
        SpecError: There is no batch, `every` or `drop` is out of range, the directions are not finite vectors, or they
            span the whole space.
    """

    def __init__(
        self,
        loss: MeanLoss,
        batches: Iterable[Any],
        directions: Tensor,
        *,
        first: str | None = None,
        second: str | None = None,
        every: int = 50,
        drop: float = 0.1,
    ) -> None:
        require_every(every)
        if not 0 < drop < 1:
            raise SpecError(f"drop = {drop}", where="monitor", allowed="between 0 and 1")
        self.loss, self.batches, self.every, self.drop = loss, fixed(batches), every, drop
        self.first, self.second, self._span = first, second, _orthonormal(directions)
        self.steps: list[int] = []
        """Steps of the measurements."""
        self.losses: list[float] = []
        """Mean loss on the given examples; NaN if it is not finite."""
        self.alignments: list[float] = []
        """Share of the first layer's norm in the span; NaN if the weights are not finite."""
        self.norms: list[float] = []
        """Frobenius norm of the second layer's weight."""
        self.alarms: list[int] = []
        """Steps at which the alarm was on."""

    def __call__(self, step: int, model: nn.Module) -> None:
        """Measure if the step is a multiple of `every`.

        Raises:
            SpecError: A path names no layer with a weight matrix, or the first layer's number of inputs differs from
                the directions' number of entries.
        """
        if step % self.every:
            return
        first, second = self._weights(model)
        with untouched(model):
            self.losses.append(mean_over(self.loss, model, self.batches))
        self.steps.append(step)
        self.alignments.append(self._alignment(first))
        self.norms.append(float(second.norm()))
        if self._faded():
            self.alarms.append(step)

    @property
    def fired(self) -> int | None:
        """The first step with an alarm; `None` if there was none yet."""
        return self.alarms[0] if self.alarms else None

    @property
    def peak(self) -> int:
        """Index of the measurement with the highest alignment; the earliest among equals.

        Raises:
            SpecError: Nothing was measured yet.
        """
        if not self.alignments:
            raise SpecError("nothing was measured yet", where="monitor", remedy="call it at a multiple of every")
        return max(range(len(self.alignments)), key=lambda at: (self.alignments[at] >= 0, self.alignments[at]))

    @property
    def record(self) -> dict[str, list[int] | list[float]]:
        """All measurements by name, as plain data, for a table, a file or a plot."""
        return {
            "step": self.steps,
            "loss": self.losses,
            "alignment": self.alignments,
            "second_norm": self.norms,
        }

    def _faded(self) -> bool:
        at, chance = self.peak, math.sqrt(len(self._span) / self._span.shape[1])
        learned = self.alignments[at] > min(2 * chance, (1 + chance) / 2)
        fell = self.alignments[-1] <= (1 - self.drop) * self.alignments[at]
        return learned and fell and self.losses[-1] <= self.losses[at] and self.norms[-1] > self.norms[at]

    def _alignment(self, weight: Tensor) -> float:
        # Real and imaginary parts of complex weights are rows of their own.
        rows = torch.cat([weight.real, weight.imag]) if weight.is_complex() else weight
        rows = rows.flatten(1).double().cpu()
        if rows.shape[1] != self._span.shape[1]:
            finding = f"{self._span.shape[1]} entries, but the first layer reads {rows.shape[1]} inputs"
            raise SpecError(finding, where="directions", remedy="flatten them as the layer's rows are, or name first=")
        whole = float(rows.norm())
        return float((rows @ self._span.T).norm()) / whole if whole != 0 else 0.0

    def _weights(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        weights = {
            path: module.weight.detach()
            for path, module in model.named_modules()
            if isinstance(getattr(module, "weight", None), Tensor) and module.weight.ndim > 1
        }
        paths = list(weights)
        for name, path in (("first", self.first), ("second", self.second)):
            if path is not None and path not in weights:
                raise unknown("layer", path, paths, where=name)
        first = self.first or next(iter(paths), "")
        later = paths[paths.index(first) + 1 :] if first in weights else []
        second = self.second or next(iter(later), "")
        if second not in weights:
            raise SpecError("there are no two layers with a weight matrix", where=f"model ({type(model).__name__})")
        return weights[first], weights[second]


def class_directions(inputs: Tensor, targets: Tensor) -> Tensor:
    """Reference directions: each class mean minus the mean over all examples.

    Args:
        inputs: Examples `[n, ...]`, in the form that the first layer reads.
        targets: Their classes `[n]`.

    Returns:
        `[c, d]` in double precision, one row per class that occurs.

    Raises:
        SpecError: The inputs are complex.
    """
    if inputs.is_complex():
        remedy = "leave this monitor out, or pass directions= of your own"
        raise SpecError(f"inputs are {inputs.dtype}", where="feature_loss", allowed="real inputs", remedy=remedy)
    rows, classes = inputs.flatten(1).double(), targets.unique()
    return torch.stack([rows[targets == label].mean(0) for label in classes]) - rows.mean(0)


def _orthonormal(directions: Tensor) -> Tensor:
    """An orthonormal basis of the span, as rows `[k, d]`."""
    if directions.is_complex():
        raise SpecError("are complex", where="directions", allowed="real numbers [k, d]")
    rows = torch.atleast_2d(directions.detach().double().cpu())
    if rows.ndim != 2 or not rows.isfinite().all() or not rows.norm() > 0:
        raise SpecError("are zero, not finite, or no vectors", where="directions", allowed="finite numbers [k, d]")
    _, sizes, basis = torch.linalg.svd(rows, full_matrices=False)
    span: Tensor = basis[sizes > 1e-10 * sizes[0]]
    if len(span) == rows.shape[1]:
        raise SpecError(f"span all {len(span)} dimensions", where="directions", allowed="fewer than there are inputs")
    return span
