"""Features: the values of hidden layers while a model makes its decisions, one row per decision.

Features are the output of a module, or its *input* (`given`). For networks that are not plain chains, the inputs of the
modules with weights are the best choice: they come after all norms and activations. If a module runs several times, its
last run counts. If it has several outputs, the first one counts. A complex feature is two real ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.base.errors import SpecError, unknown
from expunge.core.data import Batch
from expunge.core.decisions import Decisions
from expunge.core.modules import evaluating
from expunge.core.positions import decided_only
from expunge.core.problem import Problem
from expunge.core.recompute import micro_batches
from expunge.numerics.precision import wide
from expunge.numerics.real import is_continuous

LARGEST_MAP = 4
"""Largest height and width of the maps that `flat` keeps."""


@dataclass(frozen=True)
class FeatureSite:
    """Where features are read: the output of the module at this path, or its input if `given`."""

    path: str
    given: bool = False


class Features:
    """Reads features of a model while the problem's objective computes the decisions.

    Args:
        problem: The problem; its objective computes the decisions.
        layers: Where features are read.
        where: Name of the setting that names layers, for messages.
    """

    def __init__(self, problem: Problem, layers: Sequence[FeatureSite], where: str) -> None:
        self.problem, self.layers, self.where = problem, layers, where

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Decisions, list[Tensor]]:
        """The decisions on a batch, and each layer's features `[n, ...]`, with gradients where enabled.

        Raises:
            SpecError: A layer does not have one row per decision.
        """
        caught: dict[FeatureSite, Any] = {}
        handles = [_catch(model.get_submodule(layer.path), layer, caught) for layer in self.layers]
        try:
            # The hooks keep one forward pass, so the whole batch and all positions must be in one pass.
            with micro_batches(1), decided_only(False):
                decisions = self.problem.objective.decisions(model, batch)
        finally:
            for handle in handles:
                handle.remove()
        return decisions, [self._rows(layer, caught.get(layer), batch, decisions) for layer in self.layers]

    def _rows(self, layer: FeatureSite, caught: Any, batch: Batch, decisions: Decisions) -> Tensor:
        values = _first(caught)
        rows = _rows(values, batch, decisions, self.problem)
        if rows is not None:
            return wide(rows)
        shape = f"a tensor of shape {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise SpecError(
            f"{layer.path!r} has {shape}, not features for each of {len(decisions.targets)} decisions",
            where=self.where,
            remedy="name another layer",
        )


def require_layers(model: nn.Module, paths: Sequence[str], where: str) -> list[FeatureSite]:
    """The outputs of the modules at these paths, as places of features.

    Raises:
        SpecError: There is no module at one of them.
    """
    modules = dict(model.named_modules())
    for path in paths:
        if not path or path not in modules:
            raise unknown("layer", path, [name for name in modules if name], where=where)
    return [FeatureSite(path) for path in paths]


def given_to_weights(model: nn.Module, problem: Problem) -> dict[FeatureSite, Tensor | None]:
    """The input of each module with its own weights, in the order in which the modules run, on two test examples.

    Args:
        model: The model; it runs once, in evaluation mode.
        problem: Gives the test examples and the objective.

    Returns:
        Per module its features `[n, ...]` with their graph; `None` if its input is not one row per decision, for
        example for an embedding of positions. The input of the first module is usually the data, without a graph.
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
    return {layer: _rows(_first(values), batch, decisions, problem) for layer, values in caught.items()}


def last_hidden(model: nn.Module, problem: Problem, where: str) -> FeatureSite:
    """The input of the last module with weights of its own.

    Raises:
        SpecError: No such module ran.
    """
    sites = list(given_to_weights(model, problem))
    if not sites:
        remedy = f"name a layer of {type(model).__name__}"
        raise SpecError("no module with weights ran", where=where, remedy=remedy)
    return sites[-1]


def flat(features: Tensor) -> Tensor:
    """Features `[n, ...]` as rows `[n, d]`; maps with more than `LARGEST_MAP` positions a side are averaged to it."""
    if features.ndim == 4 and max(features.shape[2:]) > LARGEST_MAP:
        features = F.adaptive_avg_pool2d(features, LARGEST_MAP)
    return features.flatten(1)


def half_way_and_last(model: nn.Module, problem: Problem) -> list[FeatureSite]:
    """The inputs of two modules with weights, at half depth and the last, among features that training can change."""
    given = given_to_weights(model, problem).items()
    layers = [layer for layer, features in given if features is not None and features.requires_grad]
    return list(dict.fromkeys([layers[(len(layers) - 1) // 2], layers[-1]])) if layers else []


def _catch(module: nn.Module, layer: FeatureSite, caught: dict[FeatureSite, Any]) -> torch.utils.hooks.RemovableHandle:
    def keep(values: Any) -> None:
        # The entry moves to the end, so that the order is that of the last runs.
        caught.pop(layer, None)
        caught[layer] = values

    if layer.given:
        return module.register_forward_pre_hook(lambda _, inputs: keep(inputs))
    return module.register_forward_hook(lambda _, __, output: keep(output))


def _first(values: Any) -> Any:
    return values[0] if isinstance(values, tuple) and values else values


def _rows(values: Any, batch: Batch, decisions: Decisions, problem: Problem) -> Tensor | None:
    if not isinstance(values, Tensor) or not is_continuous(values) or values.ndim < 2:
        return None
    rows = problem.objective.per_decision(values, batch)
    # In the place of the channels: the parts of a complex map `[n, c, h, w]` are `[n, 2 c, h, w]`.
    if rows is not None and rows.is_complex():
        rows = torch.cat([rows.real, rows.imag], 1)
    return rows if rows is not None and len(rows) == len(decisions.targets) else None
