"""Outputs that an evaluation keeps: each batch runs through the model once, however many numbers are read from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from expunge.core.decisions import OUTPUT_VALUES


class _Kept:
    def __init__(self, model: nn.Module) -> None:
        self.model, self.room = model, OUTPUT_VALUES
        self.outputs: dict[tuple[str | int | None, bytes], Tensor] = {}
        self.latest: tuple[tuple[str | int | None, bytes], Tensor] | None = None
        """The last output that found no room."""


_KEPT: ContextVar[_Kept | None] = ContextVar("kept", default=None)


@contextmanager
def once_per_batch(model: nn.Module) -> Iterator[None]:
    """Within, forward passes without gradients of this model are kept by the ids of their batch.

    The caller changes neither the model nor the inputs of an id within; targets may change. At most `OUTPUT_VALUES`
    values are kept. Of batches beyond, the last one is kept too, until the next one runs.
    """
    token = _KEPT.set(_Kept(model))
    try:
        yield
    finally:
        _KEPT.reset(token)


def kept_output(model: nn.Module, ids: Tensor, output: str | int | None, compute: Callable[[], Tensor]) -> Tensor:
    """The kept output of the examples, or what `compute` returns.

    Args:
        model: The model that `compute` runs.
        ids: Ids of the batch, `[b]`.
        output: Which of the model's outputs.
        compute: Runs the model.
    """
    kept = _KEPT.get()
    if kept is None or kept.model is not model or model.training or torch.is_grad_enabled():
        return compute()
    key = output, ids.cpu().numpy().tobytes()
    if kept.latest is not None and kept.latest[0] == key:
        return kept.latest[1].clone()
    if key not in kept.outputs:
        kept.latest = None
        computed = compute()
        if computed.numel() > kept.room:
            if computed.numel() <= OUTPUT_VALUES:
                kept.latest = (key, computed.clone())
            return computed
        kept.room -= computed.numel()
        kept.outputs[key] = computed
    # A copy, because an objective may change its logits in place.
    return kept.outputs[key].clone()
