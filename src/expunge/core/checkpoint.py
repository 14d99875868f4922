"""Weights as safetensors only; nothing is ever unpickled."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor, nn

from expunge.base.errors import SpecError

_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""First bytes of what `torch.save` writes (a zip or a bare pickle)."""


def dump(module: nn.Module) -> bytes:
    """All parameters and buffers; tied tensors are written once."""
    return save_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in _unique(module).items()})


def restore(module: nn.Module, content: bytes, where: str) -> nn.Module:
    """Load weights into a module, in place.

    Args:
        module: A module of the architecture that was saved.
        content: A safetensors file.
        where: Its place, for messages.

    Returns:
        The module.

    Raises:
        SpecError: A pickle, a truncated file, or weights of another architecture; names the first misfit.
    """
    # A safetensors file begins with the length of its header, which may be one of these numbers, then with JSON.
    if content.startswith(_PICKLES) and content[8:9] != b"{":
        raise SpecError(
            "this is a pickle, which could run code when loaded",
            where=where,
            allowed="a safetensors file",
            remedy="convert it where you trust it, with safetensors.torch.save_file(model.state_dict(), path)",
        )
    try:
        tensors = load_bytes(content)
    except (SafetensorError, ValueError) as error:
        finding = f"not a whole safetensors file ({error})"
        raise SpecError(finding, where=where, remedy="save or copy it again") from None
    _check(module, tensors, where)
    with torch.no_grad():
        state = module.state_dict(keep_vars=True)
        for name, tensor in tensors.items():
            state[name].copy_(tensor)
    return module


def load(module: nn.Module, path: Path, where: str = "") -> nn.Module:
    """Load weights from a file into a module, in place.

    Raises:
        SpecError: As `restore`, or the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SpecError(f"cannot read {path} ({error.strerror})", where=where, remedy="check the path") from None
    return restore(module, content, where or str(path))


def _check(module: nn.Module, found: dict[str, Tensor], where: str) -> None:
    state = module.state_dict(keep_vars=True)
    # Tied tensors are one under several names, and writers differ in which of them they keep.
    stored = {id(state[name]) for name in found if name in state}
    misfits = [f"{name} is missing" for name, tensor in _unique(module).items() if id(tensor) not in stored]
    misfits += [f"{name} is not part of the model" for name in sorted(found) if name not in state]
    misfits += [
        f"{name} has shape {list(found[name].shape)}, the model's has {list(tensor.shape)}"
        for name, tensor in state.items()
        if name in found and found[name].shape != tensor.shape
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
    """State by name, the first name of each tensor; an alias of it is tied and would be written twice."""
    seen: dict[int, str] = {}
    state = module.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if seen.setdefault(id(tensor), name) == name}
