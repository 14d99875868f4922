"""A device that is not the CPU, in pure Python: tensors of it compute on the CPU and refuse what a GPU refuses.

A tensor on it says so (`.device.type == "fake"`), gives no NumPy array, and raises where an operation mixes it with a
CPU tensor or draws from a CPU generator. As on CUDA, a CPU tensor without dimensions may join an operation, and CPU
indices may index a tensor on the device; indices on the device cannot index a CPU tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend


class Backend(_DummyBackendModule):
    """What PyTorch asks a device for; its random numbers are the CPU's."""

    _initialized = True
    kept = 0
    """How often its random state was read."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def device(self, index: int) -> AbstractContextManager[None]:
        return nullcontext()

    def get_rng_state(self) -> Tensor:
        Backend.kept += 1
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor) -> None:
        torch.set_rng_state(state)


_setup_privateuseone_for_python_backend("fake", Backend())
FAKE = torch.device("fake:0")
aten = torch.ops.aten
COPIES = {aten.copy_, aten._to_copy, aten._copy_from}
INDEXED = {
    aten.index,
    aten.index_put,
    aten.index_put_,
    aten._index_put_impl_,
    aten._unsafe_index,
    aten._unsafe_index_put,
}
JOINED = {aten.cat, aten.stack, aten.index_select, aten.gather, aten.scatter, aten.index_add, aten.mm, aten.bincount}
"""Operations that take no CPU tensor beside those of the device, not even one without dimensions."""


class OnDevice(Tensor):
    """A tensor on the device; what it holds is a CPU tensor."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        made: OnDevice = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=FAKE,
            storage_size=2**40,  # none is allocated; more than any shape that an operation gives it later
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _on_device(func, args, kwargs or {})

    def untyped_storage(self) -> torch.UntypedStorage:
        """That of what it holds: two tensors share memory where these do."""
        return self.inner.untyped_storage()

    def data_ptr(self) -> int:
        """Address of what it holds."""
        return self.inner.data_ptr()

    def tolist(self) -> Any:
        """Its numbers, which PyTorch gives for no subclass of a tensor."""
        return self.inner.detach().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """Refused, as by every device but the CPU."""
        raise TypeError("can't convert fake:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def __format__(self, spec: str) -> str:
        return format(self.inner, spec)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copied = OnDevice(self.inner.clone())
            if isinstance(self, torch.nn.Parameter):
                copied = torch.nn.Parameter(copied, requires_grad=self.requires_grad)
            memo[id(self)] = copied.requires_grad_(self.requires_grad)
        return memo[id(self)]


def _on_device(func: Any, args: Any, kwargs: Any) -> Any:
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    wrappers = {id(leaf.inner): leaf for leaf in leaves if isinstance(leaf, OnDevice)}
    packet = func.overloadpacket
    _refuse_mixing(packet, args, leaves)
    _refuse_generator(kwargs)
    target = kwargs.get("device")
    result = func(*tree_map(_inner, args), **{**tree_map(_inner, kwargs), **({"device": "cpu"} if target else {})})
    if packet is aten._to_copy and target is not None and target.type == "cpu":
        return result.clone() if id(result) in wrappers else result
    if packet is aten.copy_ and not isinstance(args[0], OnDevice):
        return args[0]

    def outer(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) not in wrappers:
            return OnDevice(value)
        wrapper = wrappers[id(value)]
        if wrapper.shape != value.shape or wrapper.stride() != value.stride():
            # An operation such as squeeze_ or out= gave it another shape.
            with no_dispatch():
                wrapper.as_strided_(value.shape, value.stride(), value.storage_offset())
        return wrapper

    return tree_map(outer, result)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, OnDevice) else value


def _refuse_mixing(packet: Any, args: Any, leaves: list[Tensor]) -> None:
    if packet in COPIES:
        return
    checked = leaves
    if packet in INDEXED and isinstance(args[0], OnDevice):
        indices = {id(index) for index in args[1]}
        checked = [leaf for leaf in leaves if id(leaf) not in indices]
    others = [leaf for leaf in checked if not isinstance(leaf, OnDevice) and (leaf.ndim or packet in JOINED)]
    if others:
        raise RuntimeError(f"Expected all tensors to be on the same device, found fake:0 and cpu ({packet})")


def _refuse_generator(kwargs: Any) -> None:
    if kwargs.get("generator") is not None:
        raise RuntimeError("Expected a 'fake' device type for generator but found 'cpu'")


def _kernel(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _LIBRARY.impl(name, function, "PrivateUse1")
        return function

    return register


_LIBRARY = torch.library.Library("aten", "IMPL")


@_kernel("empty.memory_format")
def _empty(size: Any, dtype: Any = None, **_: Any) -> Tensor:
    return OnDevice(torch.empty(size, dtype=dtype))


@_kernel("empty_strided")
def _empty_strided(size: Any, stride: Any, dtype: Any = None, **_: Any) -> Tensor:
    return OnDevice(torch.empty_strided(size, stride, dtype=dtype))


@_kernel("_copy_from")
def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    _inner(target).copy_(_inner(source))
    return target
