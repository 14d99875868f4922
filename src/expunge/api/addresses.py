"""Content addresses of a notebook's data, model and functions, so that a later session can reuse stored outputs.

Data and weights are addressed by content, functions and classes by their name and the file that holds them. A function
that cannot be imported by its name, such as one written in a notebook's cell, has no address.
"""

from __future__ import annotations

import hashlib
import importlib
from typing import Any

import torch

from expunge.api.recipe import FunctionRecipe
from expunge.base.record import address
from expunge.base.user_code import source_digest
from expunge.core.case import Case
from expunge.core.data import tensors_of
from expunge.core.lazy import LazyInputs


def addresses_of(case: Case) -> dict[str, str] | str:
    """Addresses of data, model and training. If a part of the case has no address: a short name of that part."""
    recipe = case.recipe
    if recipe is not None and not isinstance(recipe, FunctionRecipe):
        return f"a recipe of the class {type(recipe).__name__}"
    if isinstance(case.problem.data.inputs, LazyInputs):
        return "inputs that are read lazily"
    functions = [recipe.make, recipe.train] if recipe is not None else []
    named: dict[str, Any] = {"model": type(case.original), "objective": type(case.problem.objective)}
    named |= {f"function {getattr(function, '__name__', function)!r}": function for function in functions}
    for what, value in named.items():
        # The model's class need not be importable: the model is only read, and its weights have a content address.
        if what != "model" and not _importable(value):
            return what
    objective = [_code(named["objective"]), repr(sorted(vars(case.problem.objective).items()))]
    return {
        "data": address([_data(case), objective]),
        "model": address(_code(named["model"])),
        "training": address([_code(function) for function in functions]),
    }


def _importable(value: Any) -> bool:
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "<locals>")
    if module in (None, "__main__") or "<locals>" in name or "." in name:
        return False
    try:
        return getattr(importlib.import_module(module), name, None) is value
    except ImportError:
        return False


def _code(value: Any) -> list[str]:
    return [value.__module__, value.__qualname__, source_digest(value)]


def _data(case: Case) -> str:
    problem, data = case.problem, case.problem.data
    sha = hashlib.sha256(repr(data.labels).encode())
    for tensor in (
        *tensors_of(data.inputs).values(),
        data.targets,
        problem.forget,
        problem.retain,
        problem.test,
        problem.holdout,
    ):
        plain = tensor.detach().cpu().contiguous()
        sha.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        sha.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
