"""How much memory one step of training needs: measured on one and two examples, extended to a whole batch.

Every operation's output is followed until it is freed, forward and backward. So what is counted are the activations
that the backward pass needs, logits, gradients, and what an operation leaves for a moment. Each moment of a pass grows
linearly with the batch, so two small passes give the peak of a large one; gradients do not grow. Memory that a kernel
uses inside itself is not seen.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from expunge.core.data import Batch, Data
from expunge.core.seeding import forked


class Live(TorchDispatchMode):
    """Inside, counts the bytes of all tensors that were made inside and are still alive, after each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: list[int] = []
        """Bytes that were alive after each operation, in order."""
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    @property
    def peak(self) -> int:
        """The most bytes that were alive at the same time."""
        return max(self.moments, default=0)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise torch imports its compiler, which takes seconds and 100 MB. Nothing is compiled here.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {_place(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            # A view, or what an operation changed in place, is an argument's memory.
            if isinstance(tensor, Tensor) and _place(tensor) not in known:
                storage = tensor.untyped_storage()
                self._storages[_place(tensor)] = (StorageWeakRef(storage), storage.nbytes())
        freed = [place for place, (storage, _) in self._storages.items() if storage.expired()]
        for place in freed:
            del self._storages[place]
        self.moments.append(sum(size for _, size in self._storages.values()))
        return result


def _place(tensor: Tensor) -> int:
    # Two empty tensors may share an address; they hold nothing.
    return int(tensor.untyped_storage()._cdata)


def step_bytes(model: nn.Module, data: Data, loss: Callable[[Batch], Tensor], size: int, graphs: int = 1) -> int:
    """Bytes that the forward and backward pass of a batch needs, its gradients included, weights not.

    Args:
        model: In training mode; it keeps its weights, its mode and no gradients.
        data: Gives the longest examples of the training set.
        loss: A scalar loss of a batch, by the model.
        size: Examples of the batch.
        graphs: Parts of the batch that the loss runs one after the other; the small batches have an example in each.

    Returns:
        An estimate that leaves out what kernels use inside.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def run(batch: Batch) -> None:
        gradients = torch.autograd.grad(loss(batch), trained, allow_unused=True)
        del gradients

    return _extended(data, run, size, graphs)


def evaluation_bytes(data: Data, run: Callable[[Batch], Any], size: int) -> int:
    """Bytes that a forward pass without gradients needs for a batch of this size."""

    def without(batch: Batch) -> None:
        with torch.no_grad():
            run(batch)

    return _extended(data, without, size)


def _extended(data: Data, run: Callable[[Batch], None], size: int, parts: int = 1) -> int:
    """The peak of a pass over `size` examples, from passes over one and two in each part of the batch."""
    ids = longest(data, min(size, 2 * parts))
    one, two = (_moments(run, data.batch(ids[:count])) for count in (parts, len(ids)))
    if size <= 2 * parts:
        return max(two)
    if len(one) != len(two):
        # The pass takes another way for one example than for two.
        return max(two) * size // (2 * parts)
    steps = size / parts - 1
    return int(max(first + steps * (second - first) for first, second in zip(one, two, strict=True)))


def longest(data: Data, count: int) -> Tensor:
    """Ids of the longest training examples: texts are as wide as the longest of their batch."""
    if data.lengths is None:
        return data.train[:count]
    return data.train[data.lengths[data.train].argsort(descending=True, stable=True)[:count]]


def _moments(run: Callable[[Batch], None], batch: Batch) -> list[int]:
    with forked(), Live() as live:
        run(batch)
    return live.moments or [0]


LARGE = 2**25
"""Bytes of weights from which memory is given back before a file of them is made; below it is not worth the time."""


def release(model: nn.Module) -> nn.Module:
    """Give back what training a large model has left: gradients, the optimiser's states, and freed memory; in place.

    An optimiser is part of a cycle of references, and the C library keeps freed memory for later.
    """
    if weight_bytes(model) < LARGE:
        return model
    model.zero_grad(set_to_none=True)
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return model


def weight_bytes(model: nn.Module, *, trained: bool = False) -> int:
    """Bytes of all weights and buffers, tied ones once; or of those that are trained."""
    tensors = {p.data_ptr(): p for p in (model.parameters() if trained else model.state_dict(keep_vars=True).values())}
    return sum(t.numel() * t.element_size() for t in tensors.values() if not trained or t.requires_grad)
