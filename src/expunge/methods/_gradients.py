"""Gradients over a set of examples at fixed weights: means of squared or absolute per-example gradients, and sums.

The model is in evaluation mode, because an example's gradient must not depend on the rest of its batch (batch norm) or
on chance (dropout). All functions count one gradient per example, and use only as many examples as the budget allows.
The results are real: for a complex parameter `[..., 2]`, by its real and its imaginary parts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from expunge.core.case import Meter
from expunge.core.decisions import Decisions, decision_losses, sampled
from expunge.core.modules import evaluating
from expunge.core.problem import Problem
from expunge.core.refusals import require_trainable
from expunge.methods._checked import checked_chain
from expunge.numerics.factors import Magnitude
from expunge.numerics.norms import sound_norms
from expunge.numerics.per_example import chunk_size, following, summed_magnitudes
from expunge.numerics.precision import wide, zeros_for
from expunge.numerics.real import as_real
from expunge.train.loop import in_order

Number = Callable[[Decisions, int], Tensor]
"""A function of the decisions and the number of examples; it returns the sum of one number per example."""


def mean_squared_gradient(
    model: nn.Module, problem: Problem, ids: Tensor, meter: Meter, labels: torch.Generator | None = None
) -> list[Tensor] | None:
    """Mean over examples of the squared gradient of each example's log-likelihood, per trainable parameter.

    The square is inside the mean: squaring the gradient of a batch's mean loss instead, as published code does, gives
    a number that shrinks with the batch size.

    Args:
        model: The model.
        problem: Data and objective.
        ids: The examples.
        meter: Counts 1 per example.
        labels: Generator that draws each decision's label from the model's own prediction, which gives the Fisher
            information. By default the labels are those of the data, which gives the empirical Fisher information.

    Returns:
        A real tensor per trainable parameter, or `None` if the budget allows no example.
    """

    def surprise(decisions: Decisions, size: int) -> Tensor:
        return decision_losses(decisions if labels is None else sampled(decisions, labels)).sum()

    return _mean_magnitude(model, problem, ids, meter, surprise, torch.square)


def mean_absolute_gradient(
    model: nn.Module, problem: Problem, ids: Tensor, meter: Meter, number: Number
) -> list[Tensor] | None:
    """Mean over examples of the absolute gradient of one number per example, per trainable parameter.

    The absolute value is inside the mean, as the square is above.

    Args:
        model: The model.
        problem: Data and objective.
        ids: The examples.
        meter: Counts 1 per example.
        number: The number per example that is differentiated.

    Returns:
        A real tensor per trainable parameter, or `None` if the budget allows no example.
    """
    return _mean_magnitude(model, problem, ids, meter, number, torch.abs)


def summed_gradient(
    model: nn.Module, problem: Problem, ids: Tensor, meter: Meter, batch_size: int
) -> list[Tensor] | None:
    """Gradient of the summed cross-entropy of all decisions, per trainable parameter; batches only save memory.

    Args:
        model: The model.
        problem: Data and objective.
        ids: The examples.
        meter: Counts 1 per example.
        batch_size: Examples at a time.

    Returns:
        A real tensor per trainable parameter, or `None` if the budget allows no example.
    """
    ids, parameters = _affordable(ids, meter), require_trainable(model)
    if len(ids) == 0:
        return None
    total = [zeros_for(as_real(parameter.detach())) for parameter in parameters]
    with evaluating(model), sound_norms():
        for batch in in_order(problem.data, ids, batch_size):
            losses = decision_losses(problem.objective.decisions(model, batch))
            for entry, gradient in zip(total, _gradient(losses.sum(), parameters), strict=True):
                entry.add_(gradient)
            meter.charge(batch.size)
    return total


def _mean_magnitude(
    model: nn.Module, problem: Problem, ids: Tensor, meter: Meter, number: Number, magnitude: Magnitude
) -> list[Tensor] | None:
    """In chunks if the model is a chain of supported layers, otherwise one example at a time.

    On a CPU, one example at a time is faster than `torch.func.vmap` over examples, and works with every model.
    """
    ids, parameters = _affordable(ids, meter), require_trainable(model)
    if len(ids) == 0:
        return None
    total = [zeros_for(as_real(parameter.detach())) for parameter in parameters]
    with evaluating(model), sound_norms():
        layers = checked_chain(model, problem, ids)
        size = 1 if layers is None else chunk_size(problem.data.inputs)
        with following(layers or {}) as calls:
            for batch in in_order(problem.data, ids, size):
                value = number(problem.objective.decisions(model, batch), batch.size)
                if layers is None:
                    sums = [magnitude(wide(gradient)) for gradient in _gradient(value, parameters)]
                else:
                    sums = summed_magnitudes(calls, value, magnitude)
                for entry, part in zip(total, sums, strict=True):
                    entry.add_(part)
                meter.charge(batch.size)
    return [entry / len(ids) for entry in total]


def _gradient(value: Tensor, parameters: list[nn.Parameter]) -> tuple[Tensor, ...]:
    # A parameter without influence on the output has gradient zero.
    gradients = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    return tuple(map(as_real, gradients))


def _affordable(ids: Tensor, meter: Meter) -> Tensor:
    return ids if meter.limit is None else ids[: max(meter.limit - meter.gradients, 0)]
