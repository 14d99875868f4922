"""Norms with running statistics: which of them training moves, and which batches move them.

Every method, attack and training of this library follows these rules:

- A norm in a frozen part of the model runs in evaluation mode and keeps its running statistics. Otherwise a frozen
  backbone would change although none of its weights does.
- In a method, a batch of forget examples alone never moves running statistics. It is no sample of the data: its
  statistics would make the model worse on all data, and a verdict would blame the method's steps.
- How such a batch is normalised depends on the method. Beside retain batches in training mode it is normalised by its
  own statistics, as in published code, so that both terms train the same function. A method without retain batches
  (`ForgetDescent`) uses the running statistics, as the code of DELETE (2503.23751) can do: no batch would adapt the
  running statistics to the new weights, so its steps must train the function that is deployed.
- One forget example has no statistics of its own and is normalised by the running ones.

Published code mostly lets forget batches move running statistics.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

from torch import Tensor, nn

_FORGET: ContextVar[frozenset[int]] = ContextVar("forget", default=frozenset())
_HELD: ContextVar[bool] = ContextVar("held", default=False)


def statistics_held() -> bool:
    """Whether the current forward pass must not move statistics: see `held_statistics`."""
    return _HELD.get()


def keeps_statistics(module: nn.Module) -> bool:
    """Whether a module has numbers that forward passes in training mode may change.

    These are the running statistics of batch norm and instance norm, and the floating-point buffers of any layer
    without submodules, such as a norm of the user's or a spectral norm.
    """
    names = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_floating_point()]
    leaf = next(module.children(), None) is None
    return bool(names) and (leaf or any(name.startswith("running_") for name in names))


def training_mode(model: nn.Module) -> nn.Module:
    """Put the model into training mode, in place, except for norms in frozen parts; returns the model.

    A norm is frozen if all its parameters are. A norm without parameters is frozen if all parameters of the innermost
    module around it that has any are frozen.
    """
    model.train()
    for module, frozen in _norms(model, frozen=False):
        module.training &= not frozen
    return model


def moving_norms(model: nn.Module) -> list[nn.Module]:
    """The modules whose statistics training moves, by the rule of `training_mode`."""
    return [module for module, frozen in _norms(model, frozen=False) if not frozen]


@contextmanager
def fixed_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, norms use their running statistics and do not change them; afterwards they have their earlier mode."""
    norms = in_training(model)
    for norm in norms:
        norm.training = False
    try:
        yield
    finally:
        for norm in norms:
            norm.training = True


@contextmanager
def held_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, norms in training mode use the batch's statistics, but their running statistics do not change."""
    kept = [(norm, name, held) for norm in in_training(model) for name, held in norm.named_buffers(recurse=False)]
    # The forward pass changes copies: restoring the numbers in place would break a backward pass that needs them.
    for norm, name, held in kept:
        setattr(norm, name, held.clone())
    before = _HELD.set(True)
    try:
        yield
    finally:
        _HELD.reset(before)
        for norm, name, held in kept:
            setattr(norm, name, held)


def in_training(model: nn.Module) -> list[nn.Module]:
    """The modules whose statistics the next forward pass would change."""
    return [module for module in model.modules() if module.training and keeps_statistics(module)]


@contextmanager
def unlearning(forget: Tensor) -> Iterator[None]:
    """Inside, no batch that has only these ids moves running statistics; `[k]` int64, the forget set."""
    before = _FORGET.set(frozenset(forget.tolist()))
    try:
        yield
    finally:
        _FORGET.reset(before)


def statistics_for(model: nn.Module, ids: Tensor) -> AbstractContextManager[None]:
    """The context for a forward pass on these examples, by the rules above."""
    forget = _FORGET.get()
    if not forget or not all(index in forget for index in ids.tolist()):
        return nullcontext()
    return held_statistics(model) if len(ids) > 1 else fixed_statistics(model)


def _norms(module: nn.Module, *, frozen: bool) -> Iterator[tuple[nn.Module, bool]]:
    """Each module with statistics, and whether it is in a frozen part; `frozen` says so of the module around."""
    moving = [parameter.requires_grad for parameter in module.parameters()]
    frozen = not any(moving) if moving else frozen
    if keeps_statistics(module):
        yield module, frozen
    for child in module.children():
        yield from _norms(child, frozen=frozen)
