"""The recipe that a spec's `[model]` and `[train]` tables describe: an architecture and its training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.base.part import Count, NonNegative, Part, Positive, Share
from expunge.core.adapter import Adapter, attach, merge
from expunge.core.case import Meter
from expunge.core.data import Data
from expunge.core.device import placed
from expunge.core.modules import require_single_precision
from expunge.core.norms import training_mode
from expunge.core.recompute import checkpointed
from expunge.core.refusals import require_trainable
from expunge.core.seeding import forked
from expunge.train.function_training import FunctionTraining
from expunge.train.loop import batch_count, batches, fit
from expunge.train.monitors import watch
from expunge.train.optim import OptimizerName, cosine, make_optimizer

OnStep = Callable[[int, float], None]
"""Called with the number of steps taken and the loss."""


@dataclass(frozen=True)
class Training(Part):
    """How a model is trained from its initial weights. Norms in frozen parts keep their running statistics."""

    version: ClassVar[int] = 2

    epochs: Count = 25
    """Passes over the training set."""
    batch_size: Count = 128
    """Examples per step."""
    learning_rate: Positive = 2e-3
    """Largest step size of the schedule."""
    optimizer: OptimizerName = "adam"
    """`adam`, `adamw` or `sgd`."""
    weight_decay: NonNegative = 0.0
    """Coefficient of the squared norm (decoupled for `adamw`)."""
    final: Share = 1.0
    """Learning rate at the end divided by that at the start, reached along a cosine; 1 keeps it constant."""
    clip: Positive | None = None
    """Largest norm of the gradient; no clipping by default."""
    accumulate: Count = 1
    """Number of micro-batches per batch, to save memory; the loss is that of the whole batch."""

    def schedule(self, steps: int) -> Callable[[int], float] | None:
        """Factor on the learning rate at each step, or `None` if it is constant."""
        return None if self.final == 1.0 else cosine(steps, self.final)

    def fit(
        self,
        module: nn.Module,
        data: Data,
        ids: Tensor,
        seed: int,
        meter: Meter | None = None,
        watched: Callable[..., OnStep] | None = None,
    ) -> nn.Module:
        """Train the module in place on the objective's loss.

        Args:
            module: The module to train.
            data: The source of the examples.
            ids: Which examples.
            seed: Decides the order of the examples.
            meter: Charged for every gradient.
            watched: Called once with module, data, ids, optimiser and seed; returns a function to call after each step.

        Raises:
            RunError: The loss is not finite.
            SpecError: The weights are in half precision, in which steps round away.
        """
        require_single_precision(module)
        parameters = require_trainable(training_mode(module))
        generator = torch.Generator().manual_seed(seed)
        optimizer = make_optimizer(self.optimizer, parameters, self.learning_rate, self.weight_decay)
        fit(
            parameters,
            lambda batch: data.objective.loss(module, batch),
            batches(data, ids, self.batch_size, self.epochs, generator),
            optimizer,
            meter=meter,
            schedule=self.schedule(self.epochs * batch_count(len(ids), self.batch_size)),
            on_step=watched(module, data, ids, optimizer, seed) if watched else None,
            clip=self.clip,
            accumulate=self.accumulate,
        )
        return module


@dataclass(frozen=True)
class TrainedRecipe:
    """An architecture with its training: the `Recipe` that specs use.

    Args:
        architecture: Called with the data, returns a freshly initialised module.
        training: The library's loop with its settings, or a function of the user's.
        data: Gives the architecture its input shape and number of labels.
        monitors: Monitors by label, which measure during training; the trained weights do not depend on them.
        device: The device of the models.
        checkpointing: Which activations the backward pass recomputes; see `core.recompute.checkpointed`.
    """

    architecture: Any
    training: Training | FunctionTraining
    data: Data
    monitors: Mapping[str, Any] = field(default_factory=dict)
    records: dict[str, dict[str, list[float | None]]] = field(default_factory=dict, compare=False)
    """What the monitors measured in the last training, by label; `None` for a number that is not finite."""
    device: torch.device | str = "cpu"
    checkpointing: str | None = None
    adapter: Adapter | None = None
    """What is trained instead of the weights; it is merged at the end."""

    def build(self, seed: int) -> nn.Module:
        """The freshly initialised model of this seed.

        Raises:
            SpecError: The architecture makes weights in half precision, in which steps round away.
        """
        # Initial weights are drawn on the CPU, so that they are the same on every device.
        with forked(seed):
            module: nn.Module = self.architecture(self.data)
        require_single_precision(module)
        if self.checkpointing is not None:
            checkpointed(module, self.checkpointing)
        return placed(module, self.device)

    def fit(self, module: nn.Module, data: Data, ids: Tensor, seed: int, meter: Meter | None = None) -> nn.Module:
        """Train the module in place.

        Raises:
            RunError: The loss is not finite.
        """
        self.records.clear()
        if self.adapter is None:
            return self._fit(module, data, ids, seed, meter)
        return merge(self._fit(attach(module, self.adapter, seed, "train.adapter"), data, ids, seed, meter))

    def _fit(self, module: nn.Module, data: Data, ids: Tensor, seed: int, meter: Meter | None) -> nn.Module:
        if not self.monitors:
            return self.training.fit(module, data, ids, seed, meter)
        if not isinstance(self.training, Training):
            finding = f"{self.training.target!r} takes its own steps, and monitors cannot see them"
            raise SpecError(finding, where="monitor", remedy="leave the monitors out, or train with the library's loop")
        return self.training.fit(module, data, ids, seed, meter, self._watch)

    def _watch(self, module: nn.Module, data: Data, ids: Tensor, optimizer: torch.optim.Optimizer, seed: int) -> OnStep:
        """The function to call after each step; it replaces `records` by those of this training."""
        watchers = {label: monitor(data, ids, optimizer, seed) for label, monitor in self.monitors.items()}
        on_step = watch(module, *watchers.values())
        on_step(0, math.nan)

        def after(step: int, loss: float) -> None:
            on_step(step, loss)
            self.records.update({label: _plain(watcher.record) for label, watcher in watchers.items()})

        return after


def _plain(record: Mapping[str, Sequence[float]]) -> dict[str, list[float | None]]:
    """A record that JSON can represent: `None` for a number that is not finite."""
    return {name: [value if math.isfinite(value) else None for value in values] for name, values in record.items()}
