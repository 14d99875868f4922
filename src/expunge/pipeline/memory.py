"""Predict the memory of a run before it starts, and refuse a run that this machine cannot hold.

Counted for each stage, on top of what the process has when it begins:

    weights      the model that it starts from, its student, the original, and further copies that a method holds
    states       of the optimiser: two copies of the trained weights for Adam, one for SGD with momentum
                 under an adapter, all these share the weights, and the adapter is what they have more than once
    step         activations, logits and gradients of a forward and backward pass, measured: see `core/footprint.py`
    file         weights are read and written with further copies, when gradients and states are gone

While a model is trained, the process holds more than the tensors of a step: see `HOLES`.

Diagnostics and user-defined functions are counted as one step of training.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expunge.base.errors import MissingError
from expunge.core.adapter import Adapter, adapted
from expunge.core.data import Batch
from expunge.core.device import computing
from expunge.core.footprint import evaluation_bytes, step_bytes, weight_bytes
from expunge.core.method import Method
from expunge.core.seeding import forked
from expunge.pipeline.plan import Plan, Stage
from expunge.reporting.doctor import free_bytes
from expunge.train.loop import evaluation_size

STATES = {"adam": 2, "adamw": 2, "sgd": 1}
"""Optimiser -> copies of the trained weights that it keeps."""
LOADED, WRITTEN = 3, 3
"""Copies of the weights while a file of them is read, the model included, and while one is made, without the model."""
HOLES = 1.3
"""Memory that activations and gradients of a step take in a process, per byte of theirs: kernels need some inside, and
the C library keeps holes between tensors that it cannot use for larger ones. Weights and states, which are made once,
leave none. Fitted on one model by four methods and then measured on others: `benchmarks/memory.py`."""
FINITE = 1.75
"""Bytes per byte of the largest weight that the check for finite numbers after the last step takes."""


@dataclass(frozen=True)
class MemoryForecast:
    """The memory that a run needs beyond what it has, and what is there."""

    bytes: int
    """For all workers together."""
    what: str
    """The method, attack or kind of stage that needs most."""
    free: int | None
    """Bytes that are free on the device of the models; `None` if that is not known."""
    place: str = "memory"

    def __str__(self) -> str:
        free = "" if self.free is None else f"; {gigabytes(self.free)} are free"
        return f"Memory: up to {gigabytes(self.bytes)} ({self.what}){free}."

    def refuse(self) -> None:
        """Refuse a run that needs more than is free.

        Raises:
            MissingError: It does.
        """
        if self.free is not None and self.bytes > self.free:
            raise MissingError(
                f"{self.what} needs about {gigabytes(self.bytes)}, and {gigabytes(self.free)} are free",
                where=self.place,
                remedy="lower batch_size, set accumulate or checkpointing, train an adapter, or run with --workers 1",
            )


@dataclass
class Footprints:
    """The memory of the stages of a plan, in bytes."""

    plan: Plan
    _steps: dict[Any, int] = field(default_factory=dict)

    @cached_property
    def model(self) -> nn.Module:
        """A model of the plan, in training mode."""
        with forked():
            return self.plan.recipe(self.plan.data).build(0).train()

    @cached_property
    def weights(self) -> int:
        """Of one model."""
        return weight_bytes(self.model)

    def of(self, stage: Stage) -> int:
        """What a stage needs at its peak."""
        plan, whole = self.plan, self.weights
        if stage.kind == "unlearn":
            return self._unlearning(stage)
        if stage.kind == "attack":
            return self._attack(stage)
        if stage.kind in ("audit", "unmerged"):
            models = 2 + (stage.kind == "unmerged")
            return max((LOADED + models - 1) * whole, models * whole + self._evaluation)
        if stage.kind in ("original", "reference") and not self._trains(stage):
            return (LOADED + WRITTEN) * whole
        adapter = plan.adapters.get(("train", ""))
        return max(self._training(plan.training, adapter, whole), (1 + WRITTEN) * whole)

    def _trains(self, stage: Stage) -> bool:
        return self.plan.trains if stage.kind == "reference" else not self.plan.about_one_model

    def _attack(self, stage: Stage) -> int:
        """The model, the original, a student, and the best state so far."""
        label = stage.attack or ""
        part, adapter = self.plan.attacks[label], self.plan.adapters.get(("attack", label))
        before = self._before(stage) * self.weights
        resident, loaded = before + self._copies(2, adapter), before + (LOADED - 1) * self.weights
        end = before + max(self._copies(2, adapter), self.weights) + WRITTEN * self.weights
        return max(loaded, self._training(part, adapter, resident), resident + self._evaluation, end)

    def _unlearning(self, stage: Stage) -> int:
        method, before = self.plan.methods[stage.model], self._before(stage)
        # A plain function may have changed its argument, which is therefore read again.
        end = (before + 1 + (WRITTEN if isinstance(method, Method) else LOADED)) * self.weights
        return max((before - 1 + LOADED) * self.weights, self.during(stage, holes=HOLES), end)

    def during(self, stage: Stage, holes: float = 1.0) -> int:
        """The tensors that live while the method of an `unlearn` stage runs: its input too."""
        method, adapter = self.plan.methods[stage.model], self.plan.adapters.get(("method", stage.model))
        held = method.held_copies if isinstance(method, Method) else 1
        resident = self._before(stage) * self.weights + self._copies(1 + held, adapter)
        return self._training(self._steps_of(stage), adapter, resident, method, holes)

    def _before(self, stage: Stage) -> int:
        """Copies of the weights that are there before the student: its start, and the original."""
        return 1 + (stage.input("model") != stage.input("original"))

    def _copies(self, count: float, adapter: Adapter | None) -> int:
        """Bytes of a student and of further copies. Copies of a model with an adapter share all but the adapter."""
        return int(count * self.weights if adapter is None else (1 + count) * self._trained(adapter))

    def _steps_of(self, stage: Stage) -> Any:
        """The part that has the settings of an `unlearn` stage's steps."""
        method: Any = self.plan.methods[stage.model]
        return self.plan.training if "recipe" in getattr(method, "needs", ()) else method

    def _training(
        self, part: Any, adapter: Adapter | None, resident: int, method: Any = None, holes: float = HOLES
    ) -> int:
        """Of gradient steps with the settings of a part, on top of models that are there."""
        size, graphs = getattr(method, "together", (int(getattr(part, "batch_size", 0)), 1))
        # Not the size of the training set: some tasks add examples to it.
        most = sum(self.plan.sizes) if graphs > 1 else max(self.plan.sizes)
        size = min(size or self.plan.training.batch_size, most)
        accumulate = int(getattr(part, "accumulate", 1) or 1)
        step = self._step(adapter, math.ceil(size / accumulate), graphs)
        if accumulate > 1:
            # The outputs of the whole batch are joined: logits, their logarithms, and the gradient of both.
            step += 12 * size * self.plan.data.objective.output_size(self.plan.data.targets)
        states = self._states(part, adapter)
        return resident + states + max(int(holes * step), self._trained(adapter) + int(FINITE * self._largest(adapter)))

    def _states(self, part: Any, adapter: Adapter | None) -> int:
        return STATES.get(str(getattr(part, "optimizer", "")), 0) * self._trained(adapter)

    def _adapted(self, adapter: Adapter | None) -> nn.Module:
        if adapter is None:
            return self.model
        with forked():
            return adapted(self.model, adapter, 0)

    def _largest(self, adapter: Adapter | None) -> int:
        def measure() -> int:
            trained = (p for p in self._adapted(adapter).parameters() if p.requires_grad)
            return max((p.numel() * p.element_size() for p in trained), default=0)

        return self._remembered(("largest", adapter), measure)

    def _trained(self, adapter: Adapter | None) -> int:
        return self._remembered(("trained", adapter), lambda: weight_bytes(self._adapted(adapter), trained=True))

    def _step(self, adapter: Adapter | None, size: int, graphs: int) -> int:
        def measure() -> int:
            model, objective = self._adapted(adapter), self.plan.data.objective

            def loss(batch: Batch) -> Tensor:
                parts = batch.chunk(graphs) if graphs > 1 and batch.size > 1 else [batch]
                return torch.stack([objective.loss(model, part) for part in parts]).sum()

            with computing(self.plan.spec.precision):
                return step_bytes(model, self.plan.data, loss, size, graphs)

        return self._remembered((adapter, size, graphs), measure)

    def _remembered(self, key: Any, measure: Any) -> int:
        if key not in self._steps:
            self._steps[key] = measure()
        return self._steps[key]

    @cached_property
    def _evaluation(self) -> int:
        objective, data = self.plan.data.objective, self.plan.data
        model = self.model.eval()
        try:
            size = min(evaluation_size(data), sum(self.plan.sizes) + len(data.test))
            return evaluation_bytes(data, lambda batch: objective.loss(model, batch), size)
        finally:
            model.train()


def forecast_memory(plan: Plan, stages: Iterable[Stage], workers: int) -> MemoryForecast | None:
    """The memory of these stages.

    Args:
        plan: The plan of the stages.
        stages: Those that are left to run.
        workers: How many run at the same time. Several workers are processes of their own.

    Returns:
        The forecast; `None` if nothing is left, or if the model cannot be measured.
    """
    footprints = Footprints(plan)
    try:
        needs = sorted(((footprints.of(stage), _name(stage)) for stage in stages), reverse=True)
    except Exception:  # a model that cannot be followed, such as one that is compiled; the run itself may work
        return None
    if not needs:
        return None
    together = needs[:workers]
    own = _resident() if len(together) > 1 else 0
    total = sum(size for size, _ in together) + own * len(together)
    free, place = free_bytes(), "memory"
    if plan.device.type == "cuda":
        free, place = torch.cuda.mem_get_info(plan.device)[0], str(plan.device)
    return MemoryForecast(total, needs[0][1], free, place)


def _name(stage: Stage) -> str:
    return {"unlearn": stage.model, "attack": stage.attack or ""}.get(stage.kind, stage.kind)


def _resident() -> int:
    """Bytes of this process that are in memory: every worker has the same libraries and data."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def gigabytes(count: int) -> str:
    """Bytes in GB (10^9), with two digits; small amounts in MB."""
    value, unit = (count / 1e9, "GB") if count >= 1e9 else (count / 1e6, "MB")
    return f"{value:.2g} {unit}" if value < 99.5 else f"{value:.0f} {unit}"
