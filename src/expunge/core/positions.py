"""Logits at decided positions only: in training, a language model computes no logits that its loss does not use.

Prompts and padding have no decision, and logits are the largest tensors of a training step: 12 bytes per position and
token of the vocabulary, with log-probabilities and gradients. A hook in front of the output layer keeps the decided
rows of the last hidden states, so the model returns `[n, v]` instead of `[b, t, v]`. Rows do not depend on each other
there, so numbers change by rounding only.

It is done for models from transformers that accept `logits_to_keep`, which therefore choose positions themselves right
before the output layer, and in the training loop only.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING

from torch import Tensor, nn

from expunge.core.modules import embedding_layer

if TYPE_CHECKING:
    from expunge.core.data import Batch

At = Callable[["Batch"], Tensor]
"""From a batch to the positions of which outputs are needed, `[b, t]` bool."""
_DECIDED: ContextVar[bool] = ContextVar("decided", default=False)


@contextmanager
def decided_only(wanted: bool = True) -> Iterator[None]:
    """Inside, language models that can do so compute logits at decided positions only, or not, if not `wanted`."""
    before = _DECIDED.set(wanted)
    try:
        yield
    finally:
        _DECIDED.reset(before)


def chooses_positions(model: nn.Module) -> bool:
    """Whether logits of this model are computed at decided positions only, here and now."""
    return (
        _DECIDED.get()
        and "logits_to_keep" in inspect.signature(model.forward).parameters
        and embedding_layer(model, "output") is not None
    )


def only_at(model: nn.Module, batch: Batch, at: At | None) -> AbstractContextManager[None]:
    """The context of one forward pass in which the output layer reads the positions of `at` only."""
    return nullcontext() if at is None else _kept(model, at(batch))


@contextmanager
def _kept(model: nn.Module, positions: Tensor) -> Iterator[None]:
    layer = embedding_layer(model, "output")
    assert layer is not None

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][positions.to(inputs[0].device)], *inputs[1:])

    handle = layer.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()
