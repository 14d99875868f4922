"""Undo an edit of weights: the original values of what it changed, in a file.

The file is as large as the changed tensors, such as the few matrices that `curvature_edit` has edited. It knows the
digests of the weights before and after the edit, so it restores the original bit by bit or not at all. Whoever has the
file has what was removed: delete it where the removal is meant to last.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.core.modules import parameters_digest

_BEFORE, _AFTER = "before", "after"


def save_undo(before: nn.Module, after: nn.Module, path: Path | str) -> list[str]:
    """Keep the original values of all parameters that differ.

    Args:
        before: The original model.
        after: The edited model, of the same architecture.
        path: The file, safetensors.

    Returns:
        Names of the changed parameters.

    Raises:
        SpecError: The models have other parameters, or none differs.
    """
    ours, theirs = dict(before.named_parameters()), dict(after.named_parameters())
    shapes = [{name: parameter.shape for name, parameter in of.items()} for of in (ours, theirs)]
    if shapes[0] != shapes[1]:
        name = next(n for n in {**shapes[0], **shapes[1]} if shapes[0].get(n) != shapes[1].get(n))
        raise SpecError(f"{name!r} differs in shape", where="after", allowed="the edited model and its original")
    changed = {n: p.detach().cpu().clone() for n, p in ours.items() if not torch.equal(p.cpu(), theirs[n].cpu())}
    if not changed:
        raise SpecError("no parameter differs", where="after", remedy="give the edited model")
    save_file(changed, path, {_BEFORE: parameters_digest(before), _AFTER: parameters_digest(after)})
    return sorted(changed)


def undo(model: nn.Module, path: Path | str) -> list[str]:
    """Restore, in place, what an edit changed.

    Args:
        model: The edited model.
        path: What `save_undo` wrote.

    Returns:
        Names of the restored parameters.

    Raises:
        SpecError: The file cannot be read, or belongs to a model with other weights; the model is then unchanged.
    """
    values, about = _read(path)
    digest = parameters_digest(model)
    if digest != about[_AFTER]:
        raise SpecError(
            f"it belongs to an edited model with digest {about[_AFTER][:12]}, and this model has {digest[:12]}",
            where=str(path),
            allowed="the model that the edit returned, unchanged",
            remedy="undo before any further training",
        )
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)
    return sorted(values)


def _read(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise SpecError(f"cannot be read ({type(error).__name__})", where=str(path)) from None
    if not {_BEFORE, _AFTER} <= about.keys():
        raise SpecError("holds no undo of an edit", where=str(path), allowed="a file of expunge.train.undo.save_undo")
    return values, about
