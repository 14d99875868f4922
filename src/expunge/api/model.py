"""The model that a notebook hands over: a module, in a precision in which steps of training count."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from os import PathLike
from typing import Any

from torch import nn

from expunge.base.errors import SpecError
from expunge.core.modules import half_precision, widened
from expunge.reporting.progress import Progress


def require_module(model: Any) -> None:
    """Refuse a path, weights, a class or a wrapper in the place of a module.

    Raises:
        SpecError: It is no module; the message says how to get one from it.
    """
    if isinstance(model, nn.Module):
        return
    finding, remedy = f"found {type(model).__name__}", "pass the torch module itself"
    if isinstance(model, str | PathLike):
        finding, remedy = f"found {str(model)!r}", f"load it: AutoModelForCausalLM.from_pretrained({str(model)!r})"
    elif isinstance(model, Mapping):
        remedy = "load these weights into a module: model.load_state_dict(...)"
    elif isinstance(model, type):
        finding, remedy = f"found the class {model.__name__}", "pass an object of it, with its trained weights"
    elif isinstance(getattr(model, "model", None), nn.Module):
        remedy = f"pass the .model of the {type(model).__name__}"
    raise SpecError(finding, where="model", allowed="a torch.nn.Module", remedy=remedy)


def in_single_precision(model: nn.Module) -> nn.Module:
    """The model, or a copy in single precision if its weights are in half precision; a message says so."""
    narrow = half_precision(model)
    if not narrow:
        return model
    Progress().say(f"{narrow}: the case holds a float32 copy, because steps of training round away in half precision")
    return widened(copy.deepcopy(model))
