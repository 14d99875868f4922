"""Weights are written as safetensors, and read from these or from a `torch.save` of a state dict: tensors, no code."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.base.reading import read_given
from expunge.core.first_pass import first_line, require_loadable
from expunge.reporting.progress import Progress

_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""First bytes of a file of `torch.save` (a zip or a bare pickle)."""
_NESTED = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which training scripts store a state dict beside other things."""


def dump(module: nn.Module) -> bytes:
    """All parameters and buffers as a safetensors file; tied tensors are written once.

    Raises:
        SpecError: The format has no such type: of complex numbers it has complex64 only.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _unique(module).items()}
    for name, tensor in tensors.items():
        if tensor.is_complex() and tensor.dtype != torch.complex64:
            raise SpecError(
                f"{name!r} is {tensor.dtype}, which safetensors files cannot hold",
                where=f"model ({type(module).__name__})",
                allowed="complex64",
                remedy="make the weights complex64",
            )
    return save_bytes(tensors)


def restore(module: nn.Module, content: bytes, where: str, path: Path | None = None) -> nn.Module:
    """Load weights into a module, in place.

    Args:
        module: A module of the same architecture.
        content: Bytes of a safetensors file, or of a state dict that `torch.save` wrote. A prefix that all names share,
            such as `module.`, is removed if the module's names do not have it.
        where: Place of the file, for messages.
        path: The file, for what is said on stderr: prefixes that were removed, and changes of type.

    Returns:
        The module.

    Raises:
        SpecError: The file holds more than tensors, is truncated, or holds weights of another architecture; the message
            names the first difference.
    """
    require_loadable(module)
    state = module.state_dict(keep_vars=True)
    tensors = _without_prefix(_tensors_in(content, where), state, str(path or where))
    _check(module, tensors, where)
    _say_types(tensors, state, str(path or where))
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)
    return module


def _tensors_in(content: bytes, where: str) -> Mapping[str, Tensor]:
    # A safetensors file starts with the length of its header, which may equal one of these prefixes; then JSON follows.
    if content.startswith(_PICKLES) and content[8:9] != b"{":
        return _unpickled(content, where)
    try:
        return load_bytes(content)
    except (SafetensorError, ValueError) as error:
        finding = f"not a complete safetensors file ({error})"
        raise SpecError(finding, where=where, remedy="save or copy it again") from None


def _unpickled(content: bytes, where: str) -> Mapping[str, Tensor]:
    """The state dict in a file of `torch.save`; with `weights_only`, no code in it can run."""
    allowed = "a safetensors file, or torch.save(model.state_dict(), path)"
    try:
        loaded: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        raise SpecError(
            f"this pickle is damaged or holds more than tensors ({first_line(error)})",
            where=where,
            allowed=allowed,
            remedy="where you trust the file: torch.save(torch.load(path, weights_only=False).state_dict(), path)",
        ) from None
    inner = [loaded[key] for key in _NESTED if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping)]
    state = inner[0] if inner else loaded
    if not isinstance(state, Mapping) or not state or not all(isinstance(t, Tensor) for t in state.values()):
        finding = f"this pickle holds a {type(loaded).__name__}, and no state dict"
        raise SpecError(finding, where=where, allowed=allowed, remedy=f"store it under {_NESTED[0]!r}, or alone")
    return state


def _without_prefix(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str) -> Mapping[str, Tensor]:
    """The tensors without what wrappers such as `DataParallel` put before every name."""
    removed = ""
    plain, removed = dict(tensors), ""
    while plain and not any(name in state for name in plain):
        prefix = next(iter(plain)).partition(".")[0] + "."
        if not all(name.startswith(prefix) and name != prefix for name in plain):
            return tensors
        plain, removed = {name.removeprefix(prefix): t for name, t in plain.items()}, removed + prefix
    if removed:
        say_once(f"{where}: the prefix {removed!r} is removed from every name")
    return plain


def _say_types(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str) -> None:
    changed = {(t.dtype, state[name].dtype) for name, t in tensors.items() if t.is_floating_point()}
    for stored, used in sorted(changed, key=str):
        if stored != used:
            say_once(f"{where}: weights are stored as {_name(stored)} and used as {_name(used)}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@cache
def say_once(line: str) -> None:
    """Write a line to stderr once in a process: a run reads the same file several times."""
    Progress().say(line)


def load(module: nn.Module, path: Path, where: str = "") -> nn.Module:
    """Load weights from a file into a module, in place.

    Raises:
        SpecError: As for `restore`, or the file cannot be read.
    """
    return restore(module, read_given(path, where=where), where or str(path), path)


def _check(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    state = module.state_dict(keep_vars=True)
    # A tied tensor has several names, and programs differ in which of them they store.
    stored = {id(state[name]) for name in tensors if name in state}
    misfits = [f"{name} is missing" for name, tensor in _unique(module).items() if id(tensor) not in stored]
    misfits += [f"{name} is not part of the model" for name in sorted(tensors) if name not in state]
    misfits += [
        f"{name} has shape {list(tensors[name].shape)}, the model's has {list(tensor.shape)}"
        for name, tensor in state.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    # To copy complex numbers into real ones would drop their imaginary parts.
    misfits += [
        f"{name} is {tensors[name].dtype}, the model's is {tensor.dtype}"
        for name, tensor in state.items()
        if name in tensors and tensors[name].is_complex() != tensor.is_complex()
    ]
    if misfits:
        more = f" and {len(misfits) - 1} more misfits" if len(misfits) > 1 else ""
        raise SpecError(
            f"weights of another architecture: {misfits[0]}{more}",
            where=where,
            allowed=f"the tensors of {type(module).__name__}",
            remedy="check model.name and its settings",
        )


def _unique(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under the first name of each tensor; further names are ties."""
    seen: dict[int, str] = {}
    state = module.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if seen.setdefault(id(tensor), name) == name}
