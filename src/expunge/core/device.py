"""Device and precision of models: named in a spec, checked once, and the same for a whole run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Literal, cast

import torch
from torch import nn

from expunge.base.errors import SpecError
from expunge.base.spec import DEVICES, PRECISIONS

Precision = Literal["float32", "bf16"]
"""`float32` computes in the model's own type; `bf16` runs forward passes in bfloat16, on weights in float32."""

_PRECISION: ContextVar[Precision] = ContextVar("precision", default="float32")


def available() -> list[str]:
    """The devices of this machine, the fastest first: `cuda:0`, ..., `mps`, `cpu`."""
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*cuda, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def resolve(name: str, where: str = "device") -> torch.device:
    """The device with this name.

    Args:
        name: `auto` (CUDA, then MPS, then the CPU), `cpu`, `cuda`, `cuda:1`, `mps`.
        where: Name of the setting, for messages.

    Raises:
        SpecError: This machine has no such device, or there is no device of that name.
    """
    present = available()
    if name == "auto":
        return torch.device(present[0])
    kind, colon, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (
        colon and not (kind == "cuda" and number.isdecimal() and len(number) < 5)
    ):
        raise SpecError(f"found {name!r}", where=where, allowed=DEVICES)
    wanted = f"cuda:{int(number or 0)}" if kind == "cuda" else name
    if wanted not in present:
        raise SpecError(
            f"found {name!r}, which this machine does not have",
            where=where,
            allowed=", ".join(["auto", *present]),
            remedy='set device = "auto"; `expunge doctor` explains how to use a GPU',
        )
    return torch.device(wanted)


def device_name(device: torch.device | str) -> str:
    """A readable name of the device, as in records: `cpu`, `cuda:0 NVIDIA H200`."""
    device = torch.device(device)
    return f"{device} {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device)


def placed(model: nn.Module, device: torch.device | str) -> nn.Module:
    """Move the model to the device, in place; ties and frozen flags stay.

    Every batch moves to the device of its model (`core.forward`), so a run needs no other call that moves data.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    model.to(device)
    # On some devices PyTorch makes a new parameter under each name, which would break ties.
    for first, *tied in names.values():
        for name in tied:
            path, _, own = name.rpartition(".")
            setattr(model.get_submodule(path), own, model.get_parameter(first))
    return model


@contextmanager
def computing(precision: str) -> Iterator[None]:
    """Inside, forward passes run in this precision; losses and weights stay in float32.

    Raises:
        SpecError: There is no such precision.
    """
    if precision not in PRECISIONS:
        raise SpecError(f"found {precision!r}", where="precision", allowed=" or ".join(PRECISIONS))
    before = _PRECISION.set(cast(Precision, precision))
    try:
        yield
    finally:
        _PRECISION.reset(before)


def precision() -> Precision:
    """The current precision of forward passes."""
    return _PRECISION.get()


def forward_pass(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The context of one forward pass: autocast to bfloat16 for `bf16`, nothing otherwise."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
