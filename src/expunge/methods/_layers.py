"""The last layers of a network: find them, reinitialise them, and train only them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from expunge.base.errors import MissingError
from expunge.base.part import Count
from expunge.core.job import Job
from expunge.core.seeding import forked
from expunge.methods._descent import Descent


@dataclass(frozen=True)
class TrainableLayer:
    """A module with its own trainable parameters: not those of submodules, and not those tied to an earlier layer."""

    name: str
    module: nn.Module
    parameters: list[nn.Parameter]


def layers(model: nn.Module) -> list[TrainableLayer]:
    """The model's layers in the order of registration, which for a sequential model is the order of the forward pass.

    A tied parameter belongs to the first layer that holds it. An output layer that shares its weights with the input
    embedding is therefore not a separate layer: training it would also train the first layer.
    """
    listed, seen = [], set[int]()
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if p.requires_grad and id(p) not in seen]
        seen.update(id(p) for p in own)
        if own:
            listed.append(TrainableLayer(name, module, own))
    return listed


def reinitialise(model: nn.Module, chosen: Sequence[TrainableLayer], seed: int) -> None:
    """Give layers of a model fresh initial values, in place; frozen parameters keep their values.

    In a Hugging Face model, the values are those of a new model of its configuration, because such models draw their
    weights in another way than the layers' `reset_parameters`. Elsewhere `reset_parameters` gives them.

    Raises:
        MissingError: A module has neither.
    """
    with forked(seed):
        fresh = _from_configurations(model)
        for layer in chosen:
            own = {id(p) for p in layer.parameters}
            kept = [(p, p.detach().clone()) for p in layer.module.parameters() if id(p) not in own]
            if not _taken_over(layer.module, fresh.get(layer.name)):
                _reset(layer)
            with torch.no_grad():
                for parameter, value in kept:
                    parameter.copy_(value)


def _from_configurations(model: nn.Module) -> dict[str, nn.Module]:
    """Modules, by path, of a new model for each outermost part of the model that has a Hugging Face configuration."""
    fresh: dict[str, nn.Module] = {}
    for path, part in model.named_modules():
        if path not in fresh and hasattr(part, "_init_weights") and hasattr(part, "config"):
            new = type(part)(part.config)
            fresh |= {".".join(filter(None, (path, name))): module for name, module in new.named_modules()}
    return fresh


def _taken_over(module: nn.Module, fresh: nn.Module | None) -> bool:
    """Copy a module's own parameters and buffers from a new one with the same names and shapes, if there is one."""
    if fresh is None:
        return False
    ours, new = (
        {**dict(m.named_parameters(recurse=False)), **dict(m.named_buffers(recurse=False))} for m in (module, fresh)
    )
    if {n: t.shape for n, t in ours.items()} != {n: t.shape for n, t in new.items()}:
        return False
    with torch.no_grad():
        for name, tensor in ours.items():
            tensor.copy_(new[name])
    return True


def _reset(layer: TrainableLayer) -> None:
    # In attention modules the method has a private name.
    names = ("reset_parameters", "_reset_parameters")
    reset = next((getattr(layer.module, name) for name in names if hasattr(layer.module, name)), None)
    if reset is None:
        raise MissingError(
            f"{layer.name or 'the model'} ({type(layer.module).__name__}) cannot be reinitialised",
            where="model",
            remedy="give it a method reset_parameters()",
        )
    reset()


@contextmanager
def training_only(model: nn.Module, chosen: Sequence[TrainableLayer]) -> Iterator[None]:
    """Inside, only the chosen layers can change; afterwards the other layers are trainable again.

    The other layers are also in evaluation mode, so that the running statistics of a frozen batch norm do not change.
    """
    moving = {id(p) for layer in chosen for p in layer.parameters}
    active = {id(layer.module) for layer in chosen}
    frozen = [p for p in model.parameters() if p.requires_grad and id(p) not in moving]
    for module in model.modules():
        state = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if state and id(module) not in active:
            module.training = False
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


@dataclass(frozen=True)
class LastLayers(Descent):
    """Base of the methods that train the last k layers on the retain set and do not change the others."""

    adapts: ClassVar[bool] = False

    k: Count = 4
    """Number of layers, counted from the output, that may change; at most all of them."""

    def train_last(self, student: nn.Module, job: Job) -> nn.Module:
        """Minimise cross-entropy on the retain set over the last k layers."""
        with training_only(student, self.last(student)):
            return self.descend_on_retain(student, job)

    def last(self, student: nn.Module) -> list[TrainableLayer]:
        """The last k layers."""
        return layers(student)[-self.k :]
