"""The last layers of a network: finding them, initialising them anew, and training them alone."""

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
    """A module with trainable parameters of its own: those not of its submodules, nor tied to an earlier layer."""

    name: str
    module: nn.Module
    parameters: list[nn.Parameter]


def layers(model: nn.Module) -> list[TrainableLayer]:
    """The model's layers in the order in which they are registered, which is that of a sequential model's pass.

    A tied parameter belongs to the first layer that holds it: a language model's output layer that shares its weights
    with the input embedding is no layer of its own, since training it would train the first layer too.
    """
    listed, seen = [], set[int]()
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if p.requires_grad and id(p) not in seen]
        seen.update(id(p) for p in own)
        if own:
            listed.append(TrainableLayer(name, module, own))
    return listed


def reinitialise(chosen: Sequence[TrainableLayer], seed: int) -> None:
    """Give layers fresh initial values, in place, by their modules' `reset_parameters`; frozen parameters keep theirs.

    Raises:
        MissingError: A module has no such method.
    """
    with forked(seed):
        for layer in chosen:
            # Attention calls it by a private name.
            names = ("reset_parameters", "_reset_parameters")
            reset = next((getattr(layer.module, name) for name in names if hasattr(layer.module, name)), None)
            if reset is None:
                raise MissingError(
                    f"{layer.name or 'the model'} ({type(layer.module).__name__}) cannot be initialised anew",
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
    """Inside, only the chosen layers can change; the flags of the others are put back afterwards.

    The others are in evaluation mode too, so that the running statistics of a frozen batch norm stay as they are.
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
    """Base of the methods that train the last k layers on the retain set and leave the others alone."""

    k: Count = 4
    """Layers, counted from the output, that may change; all of them where there are fewer."""

    def train_last(self, student: nn.Module, job: Job) -> nn.Module:
        """Minimise cross-entropy on the retain set over the last k layers."""
        with training_only(student, self.last(student)):
            return self.descend_on_retain(student, job)

    def last(self, student: nn.Module) -> list[TrainableLayer]:
        """The last k layers."""
        return layers(student)[-self.k :]
