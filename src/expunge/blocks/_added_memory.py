"""Add memory to a model that was trained without it: new channels with tied dropout, which are removed afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from expunge.blocks._hidden import Hidden
from expunge.blocks._put import NAME, Inserted
from expunge.blocks._tied_layer import TiedLayer
from expunge.blocks.widen import Run, shrink, widen_hidden


class _ReaderMask(TiedLayer):
    """Tied dropout of the input of a layer in which each channel has several consecutive entries.

    Args:
        fixed: Share of the channels that is always on.
        dim: The dimension of the channels.
        positions: Number of entries per channel.
    """

    def __init__(self, fixed: float, dim: int, positions: int) -> None:
        super().__init__(fixed, dim=1 if positions > 1 else dim)
        self.positions = positions

    def forward(self, hidden: Tensor) -> Tensor:
        if self.positions == 1:
            return super().forward(hidden)
        return super().forward(hidden.unflatten(1, (-1, self.positions))).flatten(1)


@contextmanager
def added_memory(model: nn.Module, run: Run, share: float, generator: torch.Generator) -> Iterator[None]:
    """Inside, hidden layers have new channels, which are memory. Afterwards these are removed; the base remains.

    Args:
        model: The model; it is changed in place.
        run: Computes the model's outputs on a few examples, which must not change.
        share: Number of new channels divided by the number of a layer's own channels.
        generator: Draws the new weights.

    Raises:
        MissingError: No hidden layer can be widened; the message says why.
    """
    layers = widen_hidden(model, run, share, generator)
    handles = [_mask(hidden) for hidden in layers]
    try:
        yield
    finally:
        for hidden, handle in zip(layers, handles, strict=True):
            handle.remove()
            del hidden.reader._modules[NAME]
            shrink(hidden)


def _mask(hidden: Hidden) -> torch.utils.hooks.RemovableHandle:
    convolution = isinstance(hidden.reader, nn.Conv1d | nn.Conv2d)
    fixed = hidden.channels / hidden.channels_now
    inserted = Inserted(_ReaderMask(fixed, 1 if convolution else -1, hidden.positions), hidden.path)
    hidden.reader.add_module(NAME, inserted.train(hidden.reader.training))

    def mask(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inserted.module(inputs[0]), *inputs[1:])

    handle: torch.utils.hooks.RemovableHandle = hidden.reader.register_forward_pre_hook(mask)
    return handle
