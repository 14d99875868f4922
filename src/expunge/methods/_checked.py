"""A check of a model's per-example gradients against autograd, once for each model, before importances rely on them.

A chain (`numerics.per_example`) takes many examples in one pass: a few of them are compared with one pass each. If they
differ, a warning says where, and all examples of this model go one by one. One by one, an example alone is compared
with two copies of it (`numerics.agreement`). The check changes no random state and charges no budget.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from expunge.core.device import precision
from expunge.core.problem import Problem
from expunge.core.seeding import forked
from expunge.numerics.agreement import comparing, deviations, gradients, require_sound
from expunge.numerics.per_example import chain, following, summed_magnitudes
from expunge.numerics.precision import wide, zeros_for
from expunge.objectives.classification import Classification

_EXACT: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Whether the examples of a chain may go in chunks, for each chain that was compared."""
_SOUND: WeakSet[nn.Module] = WeakSet()
"""Models whose gradients of one example alone are right."""


def checked_chain(model: nn.Module, problem: Problem, ids: Tensor) -> dict[str, nn.Module] | None:
    """The layers of a model whose examples may go in chunks; `None` if they must go one by one.

    Args:
        model: The model, in evaluation mode.
        problem: Data and objective.
        ids: The examples, at least one; up to three of them are compared.

    Raises:
        RunError: PyTorch's gradient of one example alone is wrong; names the module.
    """
    # Another objective may call the model in a different way.
    layers = chain(model) if type(problem.objective) is Classification else None
    if layers is not None and model not in _EXACT:
        with forked(), comparing():
            _EXACT[model] = _agrees(model, layers, problem, _some(ids, 3))
    if layers is not None and _EXACT[model]:
        return layers
    if model not in _SOUND:
        with forked(), comparing():
            for one in _some(ids, 2).split(1):
                _require_sound(model, problem, one)
        _SOUND.add(model)
    return None


def _some(ids: Tensor, count: int) -> Tensor:
    """At most so many of the ids, from the first to the last."""
    return ids[torch.linspace(0, len(ids) - 1, count).long().unique()]


def _agrees(model: nn.Module, layers: Mapping[str, nn.Module], problem: Problem, ids: Tensor) -> bool:
    """Whether one pass over the examples gives the gradients of one pass for each; a warning if not."""
    parameters = _trained(model)
    with following(layers) as calls:
        sums = summed_magnitudes(calls, _numbers(model, problem, ids).sum(), torch.abs)
    truth = {name: zeros_for(parameter) for name, parameter in parameters.items()}
    for one in ids.split(1):
        for name, gradient in gradients(parameters, _numbers(model, problem, one)).items():
            truth[name] += wide(gradient).abs()
    if [entry.shape for entry in sums] != [entry.shape for entry in truth.values()]:
        _warn(model, "", "have other shapes than autograd's")
        return False
    wrong = deviations(dict(zip(parameters, sums, strict=True)), truth, _coarsest(model))
    if wrong:
        path, _, _ = max(wrong, key=lambda name: wrong[name]).rpartition(".")
        _warn(model, path, f"differ by {max(wrong.values()):.1%} from autograd's")
    return not wrong


def _warn(model: nn.Module, path: str, finding: str) -> None:
    where = f"{path or 'model'} ({type(model.get_submodule(path)).__name__})"
    gradients = f"{where}: the gradients of each example, from one pass over several examples, {finding}"
    warnings.warn(f"{gradients}; the examples of this model go one by one, which is slower", stacklevel=5)


def _require_sound(model: nn.Module, problem: Problem, one: Tensor) -> None:
    def numbers(copies: int) -> Tensor:
        return _numbers(model, problem, one.repeat(copies))

    require_sound(model, numbers, _coarsest(model))


def _numbers(model: nn.Module, problem: Problem, ids: Tensor) -> Tensor:
    """The logits, each class with its own factor: unlike a loss that is almost zero, they always have a gradient."""
    logits = problem.objective.decisions(model, problem.data.batch(ids)).logits
    return logits * torch.linspace(-1, 1, logits.shape[-1]).to(logits)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _coarsest(model: nn.Module) -> torch.dtype:
    """The type of the computation with the largest rounding errors."""
    types = [parameter.dtype for parameter in _trained(model).values()]
    types += [torch.bfloat16] if precision() == "bf16" else []
    return max(types, key=lambda dtype: torch.finfo(dtype).eps)
