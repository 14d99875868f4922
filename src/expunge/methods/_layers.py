"""The last layers of a network: find them, reinitialise them, and train only them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

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


def reinitialise(chosen: Sequence[TrainableLayer], seed: int) -> None:
    """Give layers fresh initial values, in place, by `reset_parameters`; frozen parameters keep their values.

    Raises:
        MissingError: A module has no method `reset_parameters`.
    """
    with forked(seed):
        for layer in chosen:
            # In attention modules the method has a private name.
            names = ("reset_parameters", "_reset_parameters")
            reset = next((getattr(layer.module, name) for name in names if hasattr(layer.module, name)), None)
            if reset is None:
                raise MissingError(
                    f"{layer.name or 'the model'} ({type(layer.module).__name__}) cannot be reinitialised",
                    where="model",
                    remedy="give it a method reset_parameters()",
                )
            own = {id(p) for p in layer.parameters}
            kept = [(p, p.detach().clone()) for p in layer.module.parameters() if id(p) not in own]
            reset()
            with torch.no_grad():
                for parameter, value in kept:
                    parameter.copy_(value)


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

    k: Count = 4
    """Number of layers, counted from the output, that may change; at most all of them."""

    def train_last(self, student: nn.Module, job: Job) -> nn.Module:
        """Minimise cross-entropy on the retain set over the last k layers."""
        with training_only(student, self.last(student)):
            return self.descend_on_retain(student, job)

    def last(self, student: nn.Module) -> list[TrainableLayer]:
        """The last k layers."""
        return layers(student)[-self.k :]
