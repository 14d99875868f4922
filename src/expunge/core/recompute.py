"""Use less memory for activations: run forward passes in micro-batches, and recompute layers in the backward pass.

A batch in `k` micro-batches gives the *same* loss as the whole batch, for every loss. The outputs of the micro-batches
are joined before the loss is computed, so a mean over decisions stays a mean over all decisions, even if examples have
different numbers of them. Activations are kept for one micro-batch at a time: the backward pass runs each forward pass
again (Chen et al. 2016, arXiv:1604.06174). This costs about a third more time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from fnmatch import fnmatchcase
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from expunge.base.errors import SpecError
from expunge.core.example_ids import current_ids, example_ids
from expunge.core.modules import first_parameter
from expunge.core.norms import held_statistics

if TYPE_CHECKING:
    from expunge.core.data import Batch

_COUNT: ContextVar[int] = ContextVar("micro_batches", default=1)
_SHARE: ContextVar[float] = ContextVar("share", default=1.0)
OWN = "auto"
"""The value of `checkpointing` for models with their own checkpointing, such as Hugging Face's."""


@contextmanager
def micro_batches(count: int) -> Iterator[None]:
    """Inside, every forward pass of a batch runs in `count` micro-batches, at most one per example."""
    before = _COUNT.set(count)
    try:
        yield
    finally:
        _COUNT.reset(before)


def batch_share() -> float:
    """The share of the whole batch that the current forward pass sees: 1 without micro-batches.

    A layer with a loss of its own weights it by this share, so that micro-batches add up to the loss of the batch.
    """
    return _SHARE.get()


def in_micro_batches(run: Callable[[Batch], Tensor], model: nn.Module, batch: Batch) -> Tensor:
    """The outputs of a batch, `[b, ...]`, computed in micro-batches if `micro_batches` says so.

    Args:
        run: The forward pass of the model, from a batch to outputs `[b, ...]`.
        model: The model, which is searched for batch norm.
        batch: The whole batch.

    Raises:
        SpecError: The model has batch norm in training mode, which needs the whole batch at once.
    """
    parts = batch.chunk(_COUNT.get()) if _COUNT.get() > 1 else [batch]
    if len(parts) < 2:
        return run(batch)
    if any(isinstance(module, _BatchNorm) and module.training for module in model.modules()):
        raise SpecError(
            "the model has batch norm, which needs the whole batch for its statistics",
            where="accumulate",
            allowed="1 for such a model",
            remedy="set accumulate = 1, or use a model with another norm",
        )
    if not torch.is_grad_enabled():
        return torch.cat([run(part) for part in parts])
    contexts, place = _as_now(model), first_parameter(model)

    def of_part(part: Batch, place: Tensor) -> Tensor:
        before = _SHARE.set(part.size / batch.size)
        try:
            return run(part)
        finally:
            _SHARE.reset(before)

    # PyTorch restores random state only on the devices of the arguments. The batch is on the CPU, so `place` names the
    # model's device.
    outputs = [checkpoint(of_part, part, place, use_reentrant=False, context_fn=contexts) for part in parts]
    return torch.cat(outputs)


def checkpointed(model: nn.Module, which: str, where: str = "checkpointing") -> nn.Module:
    """Make a model recompute activations in the backward pass instead of keeping them; changes the model in place.

    Args:
        model: The model; its gradients stay the same.
        which: `auto` for the model's own checkpointing, which Hugging Face models have, or a glob over the paths of its
            modules, such as `layers.*`; `*` does not match a dot.
        where: Name of the setting, for messages.

    Raises:
        SpecError: The model has no checkpointing of its own, or no module has such a path.
    """
    if which == OWN:
        _enable(model, where)
        return model
    modules = [module for path, module in model.named_modules() if path and _matches(path, which)]
    if not modules:
        paths = [path for path, _ in model.named_modules() if path]
        raise SpecError(f"no module matches {which!r}", where=where, allowed=", ".join(paths[:12]) or "none")
    for module in modules:
        # A bound method, which copy.deepcopy binds to the copy.
        module.forward = MethodType(_again, module)
    return model


def _enable(model: Any, where: str) -> None:
    # The first name is that of transformers 5 and later.
    kwargs = {"use_reentrant": False}
    try:
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
        else:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    except (AttributeError, ValueError):
        raise SpecError(
            f"{type(model).__name__} has no checkpointing of its own",
            where=where,
            allowed="a glob over module paths, such as 'layers.*'",
        ) from None


def _matches(path: str, pattern: str) -> bool:
    steps, wanted = path.split("."), pattern.split(".")
    return len(steps) == len(wanted) and all(map(fnmatchcase, steps, wanted))


def _again(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = partial(type(module).forward, module)
    if not (module.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=_as_now(module), **kwargs)


def _as_now(model: nn.Module) -> Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
    """Contexts of a forward pass and of its repetition, which uses the present modes, rules of blocks and ids."""
    modes = [(module, module.training) for module in model.modules()]
    rules: list[tuple[Any, Any]] = [(module, module.rule) for module in model.modules() if hasattr(module, "rule")]
    ids = current_ids()
    return lambda: (nullcontext(), _again_as(model, modes, rules, ids))


@contextmanager
def _again_as(
    model: nn.Module, modes: Sequence[tuple[nn.Module, bool]], rules: Sequence[tuple[Any, Any]], ids: Tensor | None
) -> Iterator[None]:
    then = [(module, module.training) for module, _ in modes], [(layer, layer.rule) for layer, _ in rules]
    _set(modes, rules)
    try:
        # The first pass has moved the running statistics already.
        with example_ids(ids), held_statistics(model):
            yield
    finally:
        _set(*then)


def _set(modes: Sequence[tuple[nn.Module, bool]], rules: Sequence[tuple[Any, Any]]) -> None:
    for module, training in modes:
        module.training = training
    for layer, rule in rules:
        layer.rule = rule
