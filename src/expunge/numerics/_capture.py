"""One pass over a block of examples that keeps what every layer was given and the gradient of what it returned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from expunge.base.errors import RunError, SpecError
from expunge.numerics._batches import rows
from expunge.numerics._factors import Factors, factors
from expunge.numerics._failures import explained

Losses = Callable[[nn.Module, Any], Tensor]
"""From the module and a batch, each example's loss, `[b]`."""


@dataclass
class _Call:
    layer: nn.Module
    inputs: Tensor
    probe: Tensor


def captured(model: nn.Module, losses: Losses, batch: Any, wanted: dict[int, str]) -> dict[str, list[Factors]]:
    """Factors of each parameter for the examples of a batch.

    Args:
        model: The module.
        losses: Each example's loss.
        batch: The examples.
        wanted: Names of the parameters, by their `id`.

    Returns:
        By the parameter's name, one entry for each time it is used in a layer that has factors. A parameter that is
        used elsewhere has none there, and the caller must compare.

    Raises:
        SpecError: There is not one loss per example, or none depends on a parameter.
        RunError: A loss is not finite, or a module cannot be differentiated; names it.
    """
    calls: list[_Call] = []
    layers = [m for m in model.modules() if any(id(p) in wanted for p in m.parameters(recurse=False))]
    # First, so that a hook that changes the output, as a block's does, runs on what the layer itself returned.
    handles = [layer.register_forward_hook(_hook(calls), prepend=True) for layer in layers]
    try:
        total = summed(model, losses, batch)
    finally:
        for handle in handles:
            handle.remove()
    probes = [call.probe for call in calls]
    of_layers = [p for layer in layers for p in layer.parameters(recurse=False) if id(p) in wanted]
    with explained(model, lambda: summed(model, losses, batch), of_layers):
        slopes = torch.autograd.grad(total, probes, allow_unused=True) if probes else ()
    return _factors(calls, slopes, wanted, rows(batch))


def summed(model: nn.Module, losses: Losses, batch: Any) -> Tensor:
    """The sum of the losses of a batch, with its graph.

    Raises:
        SpecError: It has none.
    """
    with torch.enable_grad():
        total = example_losses(model, losses, batch).sum()
    if not total.requires_grad:
        raise SpecError("depend on none of the parameters", where="losses", remedy="compute them without detaching")
    return total


def example_losses(model: nn.Module, losses: Losses, batch: Any) -> Tensor:
    """Each example's loss, checked."""
    found = losses(model, batch)
    if found.shape != (rows(batch),):
        found_shape = f"has shape {list(found.shape)}"
        raise SpecError(found_shape, where="losses", allowed=f"one per example, [{rows(batch)}]")
    if not found.isfinite().all():
        place = int((~found.isfinite()).nonzero()[0, 0])
        raise RunError("the loss is not finite", where=f"example {place} of a block", remedy="look at its inputs")
    return found


def _hook(calls: list[_Call]) -> Callable[[nn.Module, tuple[Any, ...], Any], Tensor | None]:
    def keep(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor | None:
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or not isinstance(output, Tensor):
            return None
        # The gradient is taken at a zero that is added, since the output itself may be changed in place afterwards.
        probe = output.new_zeros(()).expand(output.shape).requires_grad_()
        calls.append(_Call(layer, inputs[0].detach(), probe))
        return output + probe

    return keep


def _factors(
    calls: list[_Call], slopes: tuple[Tensor | None, ...], wanted: dict[int, str], size: int
) -> dict[str, list[Factors]]:
    found: dict[str, list[Factors]] = {}
    for call, slope in zip(calls, slopes, strict=True):
        if slope is None or len(call.inputs) != size or len(slope) != size:
            continue
        for key, value in (factors(call.layer, call.inputs, slope) or {}).items():
            parameter = call.layer._parameters.get(key)
            if parameter is not None and id(parameter) in wanted:
                found.setdefault(wanted[id(parameter)], []).append(value)
    return found
