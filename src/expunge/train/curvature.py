"""Kronecker factors of a model on examples of its data, with the labels of the data or of the model itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from expunge.core.case import Meter
from expunge.core.data import Batch
from expunge.core.decisions import decision_losses, per_example, sampled
from expunge.core.generators import generator_of
from expunge.core.modules import evaluating, parameters_digest
from expunge.core.objective import DECISIONS, TOKENS, Objective
from expunge.numerics import activation
from expunge.numerics.eigenbasis import eigenbases, ekfac_eigenvalues
from expunge.numerics.kronecker import KroneckerFactors, Positions, Sharing, collect
from expunge.numerics.norms import sound_norms
from expunge.train.evaluation import Judged
from expunge.train.loop import in_order

Labels = Literal["sampled", "gold"]
"""`sampled`: each decision's label is drawn from the model's prediction (Fisher information); `gold`: the data's."""
Counted = Literal["decided", "all", "first"]
"""Positions of a sequence that count: those with a label, all, or the first one, such as a class token."""


def kronecker_factors(
    model: nn.Module,
    problem: Judged,
    ids: Tensor,
    layers: Mapping[str, nn.Module],
    *,
    labels: Labels = "sampled",
    counted: Counted = "decided",
    sharing: Sharing = "expand",
    eigenvalues: Literal["positions", "examples"] | None = None,
    batch_size: int = 32,
    seed: int = 0,
    meter: Meter | None = None,
) -> KroneckerFactors:
    """Factors of layers over some examples.

    Args:
        model: The model; runs in evaluation mode and is not changed.
        problem: Data and objective.
        ids: The examples, `[n]`.
        layers: Layers of the model, by path: see `expunge.train.matrices.matrices`.
        labels: Where labels come from. Without decisions, an objective has its own losses, so only `gold` is possible.
        counted: Which positions of sequences count. Where a layer has other positions than the targets, all count.
        sharing: What one case is: see `expunge.numerics.kronecker`.
        eigenvalues: Of EK-FAC, over positions or over examples; costs a second pass.
        batch_size: Examples at a time.
        seed: Of the draws of labels; both passes draw the same.
        meter: Charged with one gradient per example and pass.

    Returns:
        Factors that know the digest of the model's weights.

    Raises:
        MissingError: The objective makes no decisions, and labels are to be sampled.
        RunError: A loss is not finite.
        SpecError: A layer does not run.
    """
    objective, positions = problem.objective, _positions(problem.objective, counted)

    def batches() -> Iterator[Batch]:
        for batch in in_order(problem.data, ids, batch_size):
            yield batch
            if meter is not None:
                meter.charge(batch.size)

    def losses() -> Any:
        return _losses(objective, labels, generator_of(seed, "labels"))

    with evaluating(model), sound_norms():
        factors = collect(model, losses(), batches(), layers, sharing=sharing, positions=positions)
        if eigenvalues is not None:
            bases = dict(eigenbases(factors))
            values = ekfac_eigenvalues(model, losses(), batches(), layers, bases, of=eigenvalues, positions=positions)
            factors = replace(factors, eigenvalues=values)
    about = {"labels": labels, "counted": counted, "sharing": sharing, "examples": str(len(ids)), "seed": str(seed)}
    return replace(factors, about={"model": parameters_digest(model), **about})


def activations(
    model: nn.Module,
    problem: Judged,
    ids: Tensor,
    layers: Mapping[str, nn.Module],
    maps: Mapping[str, Mapping[str, Tensor]],
    *,
    counted: Counted = "decided",
) -> dict[str, dict[str, Tensor]]:
    """How strongly some examples activate parts of layers: see `expunge.numerics.activation`.

    Args:
        model: The model; runs in evaluation mode and is not changed.
        problem: Data and objective.
        ids: The examples, `[n]`.
        layers: By path.
        maps: By path and name, `[k, d_in]`.
        counted: Which positions of sequences count.

    Returns:
        By path and name, `[n]` float64 on the CPU.
    """
    objective = problem.objective
    batches, positions = in_order(problem.data, ids), _positions(objective, counted)
    with evaluating(model):
        return activation.activations(model, objective.prediction, batches, layers, maps, positions)


def mean_inputs(
    model: nn.Module, problem: Judged, ids: Tensor, layers: Mapping[str, nn.Module], *, counted: Counted = "decided"
) -> dict[str, Tensor]:
    """The mean over examples and positions of what each layer reads.

    Args:
        model: The model; runs in evaluation mode and is not changed.
        problem: Data and objective.
        ids: The examples, `[n]`.
        layers: By path.
        counted: Which positions of sequences count.

    Returns:
        By path, `[d_in]` float64; of convolutions one value a channel.
    """
    parts: dict[str, list[Tensor]] = {path: [] for path in layers}
    objective, positions = problem.objective, _positions(problem.objective, counted)

    def add(path: str, batch: Batch, given: Tensor) -> None:
        rows = given.movedim(1, -1) if isinstance(layers[path], nn.modules.conv._ConvNd) else given
        rows = rows.flatten(1, -2) if rows.ndim > 2 else rows.unsqueeze(1)
        mask = None if positions is None or rows.shape[1] == 1 else positions(path, batch, rows.shape[1])
        parts[path].append(rows.flatten(0, 1) if mask is None else rows[mask.to(rows.device)])

    with evaluating(model), torch.no_grad():
        for batch in in_order(problem.data, ids):
            hooks = [layer.register_forward_pre_hook(_reading(add, path, batch)) for path, layer in layers.items()]
            objective.prediction(model, batch)
            for hook in hooks:
                hook.remove()
    return {path: torch.cat(rows).double().mean(0) for path, rows in parts.items()}


def _reading(add: Any, path: str, batch: Batch) -> Any:
    return lambda layer, given: add(path, batch, given[0])


def _losses(objective: Objective, labels: Labels, generator: torch.Generator) -> Any:
    """Each example's loss: the sum over its decisions, so that each decision is one sample."""

    def losses(model: nn.Module, batch: Batch) -> Tensor:
        if labels == "gold" and DECISIONS not in objective.provides:
            return objective.losses(model, batch)
        decisions = objective.decisions(model, batch)
        decisions = sampled(decisions, generator) if labels == "sampled" else decisions
        return per_example(decision_losses(decisions), decisions.example, batch.size)

    return losses


def _positions(objective: Objective, counted: Counted) -> Positions | None:
    """The mask of positions for a layer with `count` positions per example."""
    if counted == "all" or (counted == "decided" and TOKENS not in objective.provides):
        return None

    def mask(path: str, batch: Batch, count: int) -> Tensor | None:
        if counted == "first":
            return (torch.arange(count) == 0).expand(batch.size, count)
        index = torch.arange(batch.size * count).view(batch.size, count, 1)
        decided = objective.per_decision(index, batch)
        return None if decided is None else torch.isin(index[..., 0], decided.flatten())

    return mask
