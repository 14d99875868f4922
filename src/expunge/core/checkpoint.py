"""Read and write weights, only as safetensors: nothing is ever unpickled."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.base.reading import read_given

_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""First bytes of a file of `torch.save` (a zip or a bare pickle)."""


def dump(module: nn.Module) -> bytes:
    """All parameters and buffers as a safetensors file; tied tensors are written once."""
    return save_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in _unique(module).items()})


def restore(module: nn.Module, content: bytes, where: str) -> nn.Module:
    """Load weights into a module, in place.

    Args:
        module: A module of the same architecture.
        content: Bytes of a safetensors file.
        where: Place of the file, for messages.

    Returns:
        The module.

    Raises:
        SpecError: The file is a pickle, is truncated, or holds weights of another architecture; the message names the
            first difference.
    """
    # A safetensors file starts with the length of its header, which may equal one of these prefixes; then JSON follows.
    if content.startswith(_PICKLES) and content[8:9] != b"{":
        raise SpecError(
            "this is a pickle, which can run code when it is loaded",
            where=where,
            allowed="a safetensors file",
            remedy="if you trust it, convert it with safetensors.torch.save_file(model.state_dict(), path)",
        )
    try:
        tensors = load_bytes(content)
    except (SafetensorError, ValueError) as error:
        finding = f"not a complete safetensors file ({error})"
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
        SpecError: As for `restore`, or the file cannot be read.
    """
    return restore(module, read_given(path, where=where), where or str(path))


def _check(module: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
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
