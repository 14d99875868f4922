"""Gradients over a whole set at the weights as they are: of single examples, squared; and summed.

In evaluation mode, since an example's gradient must depend neither on the rest of its batch (batch norm) nor on chance
(dropout). Both charge one gradient per example, and take only as many examples as the budget affords.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from expunge.core.case import Meter
from expunge.core.contracts import require_trainable
from expunge.core.objective import Decisions, decision_losses
from expunge.core.problem import Problem
from expunge.methods._measure import evaluating
from expunge.train.loop import in_order


def mean_squared_gradient(
    model: nn.Module, problem: Problem, ids: Tensor, meter: Meter, labels: torch.Generator | None = None
) -> list[Tensor] | None:
    """Mean over examples of the squared gradient of each example's log-likelihood, per trainable parameter.

    The square is inside the mean: squaring the gradient of a batch's mean loss instead, as published code does, gives
    a number that shrinks with the batch size. Examples go one by one, which on a CPU is faster than `torch.func.vmap`
    over convolutions and works with every model.

    Args:
        model: The model.
        problem: Data and objective.
        ids: The examples.
        meter: Charged 1 per example.
        labels: Draws each decision's label from the model's own prediction, which gives the Fisher information; by
            default the labels are those of the data, which gives the empirical Fisher information.

    Returns:
        A tensor per trainable parameter, or `None` where the budget affords no example.
    """
    ids, parameters = _affordable(ids, meter), require_trainable(model)
    if len(ids) == 0:
        return None
    total = [torch.zeros_like(parameter) for parameter in parameters]
    with evaluating(model):
        for batch in in_order(problem.data, ids, 1):
            decisions = problem.objective.decisions(model, batch)
            if labels is not None:
                decisions = _drawn(decisions, labels)
            for entry, gradient in zip(total, _gradient(decisions, parameters), strict=True):
                entry.addcmul_(gradient, gradient)
            meter.charge(1)
    return [entry / len(ids) for entry in total]


def summed_gradient(
    model: nn.Module, problem: Problem, ids: Tensor, meter: Meter, batch_size: int
) -> list[Tensor] | None:
    """Gradient of the summed cross-entropy of all decisions, per trainable parameter; batches only save memory.

    Args:
        model: The model.
        problem: Data and objective.
        ids: The examples.
        meter: Charged 1 per example.
        batch_size: Examples at a time.

    Returns:
        A tensor per trainable parameter, or `None` where the budget affords no example.
    """
    ids, parameters = _affordable(ids, meter), require_trainable(model)
    if len(ids) == 0:
        return None
    total = [torch.zeros_like(parameter) for parameter in parameters]
    with evaluating(model):
        for batch in in_order(problem.data, ids, batch_size):
            decisions = problem.objective.decisions(model, batch)
            for entry, gradient in zip(total, _gradient(decisions, parameters), strict=True):
                entry.add_(gradient)
            meter.charge(batch.size)
    return total


def _gradient(decisions: Decisions, parameters: list[nn.Parameter]) -> tuple[Tensor, ...]:
    # A parameter that the output does not depend on has gradient zero.
    return torch.autograd.grad(decision_losses(decisions).sum(), parameters, allow_unused=True, materialize_grads=True)


def _drawn(decisions: Decisions, generator: torch.Generator) -> Decisions:
    # On the CPU in double precision, so that device and dtype do not change the draw.
    chances = decisions.logits.detach().cpu().double().softmax(1)
    drawn = torch.multinomial(chances, 1, generator=generator)[:, 0] if len(chances) else decisions.targets
    return decisions._replace(targets=drawn.to(decisions.targets.device))


def _affordable(ids: Tensor, meter: Meter) -> Tensor:
    return ids if meter.limit is None else ids[: max(meter.limit - meter.gradients, 0)]
