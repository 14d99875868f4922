"""What hidden layers hold while a model decides: features, one row per decision.

A layer is what a module returns, or what it is *given*: the hidden states of a network that is not a plain chain are
found best as the inputs of its weights, after whatever norm and activation came before. Of a module that runs several
times it is the last run that counts, of several outputs the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError, unknown
from expunge.core.data import Batch
from expunge.core.modules import evaluating
from expunge.core.objective import Decisions
from expunge.core.problem import Problem
from expunge.core.recompute import micro_batches
from expunge.numerics.precision import wide


@dataclass(frozen=True)
class FeatureSite:
    """Features of a model: what the module at this path returns, or what it is given."""

    path: str
    given: bool = False


class Features:
    """Reads layers of a model while the problem's objective makes its decisions.

    Args:
        problem: Its objective makes the decisions.
        layers: What is read.
        where: The setting that names layers, for messages.
    """

    def __init__(self, problem: Problem, layers: Sequence[FeatureSite], where: str) -> None:
        self.problem, self.layers, self.where = problem, layers, where

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Decisions, list[Tensor]]:
        """The decisions on a batch, and each layer's features `[n, ...]`, with gradients where enabled.

        Raises:
            SpecError: A layer does not hold one row per decision.
        """
        caught: dict[FeatureSite, Any] = {}
        handles = [_catch(model.get_submodule(layer.path), layer, caught) for layer in self.layers]
        try:
            # The hooks see one forward pass, which must be that of the whole batch.
            with micro_batches(1):
                decisions = self.problem.objective.decisions(model, batch)
        finally:
            for handle in handles:
                handle.remove()
        return decisions, [self._rows(layer, caught.get(layer), batch, decisions) for layer in self.layers]

    def _rows(self, layer: FeatureSite, found: Any, batch: Batch, decisions: Decisions) -> Tensor:
        found = _first(found)
        rows = _rows(found, batch, decisions, self.problem)
        if rows is not None:
            return wide(rows)
        shape = f"a tensor of shape {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise SpecError(
            f"{layer.path!r} has {shape}, not features for each of {len(decisions.targets)} decisions",
            where=self.where,
            remedy="name another layer",
        )


def require_layers(model: nn.Module, paths: Sequence[str], where: str) -> list[FeatureSite]:
    """What the modules at these paths return.

    Raises:
        SpecError: There is no module at one of them.
    """
    modules = dict(model.named_modules())
    for path in paths:
        if not path or path not in modules:
            raise unknown("layer", path, [name for name in modules if name], where=where)
    return [FeatureSite(path) for path in paths]


def given_to_weights(model: nn.Module, problem: Problem) -> dict[FeatureSite, Tensor | None]:
    """What each module with weights of its own is given, in the order in which they run on two test examples.

    Args:
        model: Run once, in evaluation mode.
        problem: Test examples and objective.

    Returns:
        Per module its features `[n, ...]` with their graph, or `None` where it is not given one row per decision, as
        an embedding of positions is not. The first layers are usually the data themselves, which have no graph.
    """
    caught: dict[FeatureSite, Any] = {}
    weighted = [path for path, m in model.named_modules() if next(m.parameters(recurse=False), None) is not None]
    handles = [_catch(model.get_submodule(path), FeatureSite(path, given=True), caught) for path in weighted]
    batch = problem.data.batch(problem.test[:2])
    try:
        with evaluating(model), torch.enable_grad():
            decisions = problem.objective.decisions(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return {layer: _rows(_first(found), batch, decisions, problem) for layer, found in caught.items()}


def half_way_and_last(model: nn.Module, problem: Problem) -> list[FeatureSite]:
    """What the modules with weights are given at half depth and last, among hidden states that training can change."""
    given = given_to_weights(model, problem).items()
    found = [layer for layer, features in given if features is not None and features.requires_grad]
    return list(dict.fromkeys([found[(len(found) - 1) // 2], found[-1]])) if found else []


def _catch(module: nn.Module, layer: FeatureSite, caught: dict[FeatureSite, Any]) -> torch.utils.hooks.RemovableHandle:
    def keep(found: Any) -> None:
        # Moved to the end, so that the order is that of the last runs.
        caught.pop(layer, None)
        caught[layer] = found

    if layer.given:
        return module.register_forward_pre_hook(lambda _, inputs: keep(inputs))
    return module.register_forward_hook(lambda _, __, output: keep(output))


def _first(found: Any) -> Any:
    return found[0] if isinstance(found, tuple) and found else found


def _rows(found: Any, batch: Batch, decisions: Decisions, problem: Problem) -> Tensor | None:
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.ndim < 2:
        return None
    rows = problem.objective.per_decision(found, batch)
    return rows if rows is not None and len(rows) == len(decisions.targets) else None
