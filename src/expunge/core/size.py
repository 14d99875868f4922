"""Refuses a model that cannot be built: its settings, or the memory of this machine, do not allow it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from expunge.base.errors import SpecError
from expunge.core.seeding import forked


def refuse_too_large(architecture: Any, data: Any, where: str) -> None:
    """Refuse a model whose weights alone do not fit into memory, before any memory is reserved for them.

    To find out, the model is built without memory once; a model that cannot be built so is not checked.

    Args:
        architecture: Called with the data, returns a module.
        data: The data set.
        where: Name of the model, for messages.

    Raises:
        SpecError: The weights do not fit.
    """
    try:
        with forked(0), torch.device("meta"):
            module = architecture(data)
    except Exception:  # not every model can be built without memory; what is wrong shows when it is built with it
        return
    tensors = [*module.parameters(), *module.buffers()]
    needed, present = sum(tensor.numel() * tensor.element_size() for tensor in tensors), memory()
    if needed > present:
        finding = f"its weights take {needed / 2**30:.0f} GiB"
        allowed = f"less than the {present / 2**30:.0f} GiB of memory of this machine"
        raise SpecError(finding, where=where, allowed=allowed, remedy="choose a smaller model")


def built(build: Callable[[], nn.Module], where: str) -> nn.Module:
    """The model that a function builds.

    Raises:
        SpecError: torch refuses its sizes, or there is not enough memory for it.
    """
    try:
        return build()
    except (RuntimeError, MemoryError, OverflowError, ValueError, TypeError) as error:
        reason = (str(error) or type(error).__name__).partition("\n")[0]
        raise SpecError(f"the model cannot be built ({reason})", where=where, remedy="check its settings") from error


def memory() -> int:
    """Bytes of memory of this machine."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**63 - 1
