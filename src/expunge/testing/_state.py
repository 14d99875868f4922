"""Compare models, problems and data bit by bit."""

from __future__ import annotations

import hashlib
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from expunge.core.modules import state_digest


class Snapshot:
    """The earlier state of a module, for `expunge.testing._rules.require_same`."""

    def __init__(self, model: nn.Module) -> None:
        self.digest = state_digest(model)
        self.state = {name: tensor.detach().clone() for name, tensor in named(model).items()}


def contents(holder: Any, path: str = "") -> dict[str, str]:
    """Place of each tensor in (nested) dataclasses -> digest of its shape, dtype and bytes."""
    digests: dict[str, str] = {}
    for entry in fields(holder):
        value, place = getattr(holder, entry.name), f"{path}{entry.name}"
        if isinstance(value, Tensor):
            head = f"{value.dtype}{tuple(value.shape)}".encode()
            digests[place] = hashlib.sha256(head + value.cpu().contiguous().numpy().tobytes()).hexdigest()
        elif is_dataclass(value):
            digests |= contents(value, f"{place}.")
    return digests


def difference(a: nn.Module, b: nn.Module) -> str:
    """The quoted name of the first tensor in which two modules differ by a bit; empty if there is none."""
    ours, theirs = named(a), named(b)
    for name in [*ours, *theirs]:
        if name not in ours or name not in theirs or not equal(ours[name], theirs[name]):
            return repr(name)
    return ""


def ties(module: nn.Module) -> list[list[str]]:
    """Groups of names that belong to the same parameter."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return sorted(group for group in names.values() if len(group) > 1)


def named(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether shape, dtype and bytes are equal, so that a NaN equals itself."""
    same = a.shape == b.shape and a.dtype == b.dtype
    return same and a.detach().cpu().numpy().tobytes() == b.detach().cpu().numpy().tobytes()
