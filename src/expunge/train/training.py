"""The recipe that a spec's `[model]` and `[train]` tables describe: an architecture and how long it is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from expunge.base.part import Count, NonNegative, Part, Positive, Share
from expunge.core.case import Meter
from expunge.core.contracts import require_trainable
from expunge.core.data import Data
from expunge.core.objective import infer_objective, loss
from expunge.train.loop import batches, fit
from expunge.train.monitors import watch
from expunge.train.optim import OptimizerName, cosine, make_optimizer


@dataclass(frozen=True)
class Training(Part):
    """How a model is trained from its initial weights."""

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
    """Learning rate at the end over that at the start, reached along a cosine; 1 keeps it constant."""
    clip: Positive | None = None
    """Largest norm of the gradient; none by default."""

    def schedule(self, steps: int) -> Callable[[int], float] | None:
        """Factor on the learning rate at each step, or `None` where it is constant."""
        return None if self.final == 1.0 else cosine(steps, self.final)


@dataclass(frozen=True)
class TrainedRecipe:
    """An architecture with its training: the `Recipe` that specs use.

    Args:
        architecture: Called with the data, returns a freshly initialised module.
        training: How long and how fast.
        data: Gives the architecture its input shape and number of labels.
        monitors: What is measured while a model trains, by label; the trained weights do not depend on it.
    """

    architecture: Any
    training: Training
    data: Data
    monitors: Mapping[str, Any] = field(default_factory=dict)
    records: dict[str, dict[str, list[float | None]]] = field(default_factory=dict, compare=False)
    """What the monitors measured in the last training, by label; `None` where a number is not finite."""

    def build(self, seed: int) -> nn.Module:
        """The freshly initialised model of this seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module: nn.Module = self.architecture(self.data)
            return module

    def fit(self, module: nn.Module, data: Data, ids: Tensor, seed: int, meter: Meter | None = None) -> nn.Module:
        """Train the module, in place.

        Raises:
            RunError: The loss is not finite.
        """
        objective, t = infer_objective(data), self.training
        parameters = require_trainable(module.train())
        generator = torch.Generator().manual_seed(seed)
        optimizer = make_optimizer(t.optimizer, parameters, t.learning_rate, t.weight_decay)
        watchers = {label: monitor(data, ids, optimizer, seed) for label, monitor in self.monitors.items()}
        on_step = watch(module, *watchers.values()) if watchers else None
        if on_step is not None:
            on_step(0, math.nan)
        fit(
            parameters,
            lambda batch: loss(objective.decisions(module, batch)),
            batches(data, ids, t.batch_size, t.epochs, generator),
            optimizer,
            meter=meter,
            schedule=t.schedule(t.epochs * math.ceil(len(ids) / t.batch_size)),
            on_step=on_step,
            clip=t.clip,
        )
        self.records.clear()
        self.records.update({label: _plain(watcher.record) for label, watcher in watchers.items()})
        return module


def _plain(record: Mapping[str, Sequence[float]]) -> dict[str, list[float | None]]:
    """A record as JSON can hold it."""
    return {name: [value if math.isfinite(value) else None for value in values] for name, values in record.items()}
