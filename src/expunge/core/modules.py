"""Inspect and copy modules: trainable parameters, modes, shared storage, digests and teachers."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.numerics.real import as_real, is_continuous


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that are not frozen; a tied parameter occurs once."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def first_parameter(module: nn.Module) -> Tensor:
    """The first real or complex parameter, as real numbers: it shows the module's device and its real dtype.

    An empty tensor without any.
    """
    return next((as_real(p) for p in module.parameters() if is_continuous(p)), torch.empty(0))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode; afterwards each submodule has its earlier mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def frozen_copy(module: nn.Module) -> nn.Module:
    """A teacher: an independent copy in evaluation mode, whose parameters are all frozen."""
    teacher = copy.deepcopy(module).eval()
    return teacher.requires_grad_(False)


def shared_storage(a: nn.Module, b: nn.Module) -> list[str]:
    """Names of `a`'s parameters and buffers that share memory with `b`.

    A shallow copy of a module shares all of them. A "teacher" made that way *is* the student: every divergence between
    the two is zero, and unlearning with it does nothing.
    """
    taken = {t.untyped_storage().data_ptr() for t in _tensors(b).values() if t.numel()}
    return [name for name, t in _tensors(a).items() if t.numel() and t.untyped_storage().data_ptr() in taken]


def counterparts(original: nn.Module, module: nn.Module) -> dict[str, Tensor]:
    """The original's tensors that correspond to what can move in a module: see `movable`.

    Args:
        original: A model of the same architecture.
        module: Gives the names; the flags `requires_grad` are its own.

    Raises:
        SpecError: The original has another architecture; the message names the first difference.
    """
    theirs, ours = _tensors(original), movable(module)
    other = [name for name, tensor in ours.items() if name not in theirs or theirs[name].shape != tensor.shape]
    if other:
        raise SpecError(
            f"{other[0]!r} does not have the same shape in the original model",
            where=f"model ({type(module).__name__})",
            allowed="a model of the original's architecture",
            remedy="let the method start from the original",
        )
    return {name: theirs[name].detach() for name in ours}


def movable(module: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters, and real and complex buffers; a tied tensor has its first name."""
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return parameters | {name: b for name, b in module.named_buffers() if is_continuous(b)}


def require_distinct(teacher: nn.Module, student: nn.Module) -> None:
    """Refuse a teacher that shares storage with its student.

    Args:
        teacher: The model that must not change.
        student: The model that is trained.

    Raises:
        SpecError: They share at least one tensor.
    """
    names = shared_storage(teacher, student)
    if names:
        raise SpecError(
            f"the teacher shares storage with its student ({names[0]} and {len(names) - 1} more)",
            where=f"teacher ({type(teacher).__name__})",
            remedy="make it with copy.deepcopy or expunge.core.modules.frozen_copy",
        )


def state_digest(module: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of every parameter and buffer, and over modes and frozen flags."""
    sha = hashlib.sha256()
    for name, tensor in _tensors(module).items():
        plain = tensor.detach().cpu().contiguous()
        sha.update(f"{name}{plain.dtype}{tuple(plain.shape)}{tensor.requires_grad}".encode())
        sha.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    sha.update("".join(str(int(m.training)) for m in module.modules()).encode())
    return sha.hexdigest()


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
