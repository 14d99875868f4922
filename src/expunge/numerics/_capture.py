"""One pass over a batch that keeps the inputs of layers and the gradients of the losses at their outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from expunge.base.errors import RunError, SpecError
from expunge.numerics._failures import explained
from expunge.numerics.batches import rows
from expunge.numerics.factors import Factors, factors

Losses = Callable[[nn.Module, Any], Tensor]
"""Maps the module and a batch to each example's loss, `[b]`."""


class Call(NamedTuple):
    """One call of a layer during a forward pass."""

    path: str
    layer: nn.Module
    inputs: Tensor
    output: Tensor
    """The tensor to take the gradient at: the layer's output, or zeros that were added to it."""


class Use(NamedTuple):
    """One call of a layer, with the gradient of the summed losses at its output."""

    path: str
    layer: nn.Module
    inputs: Tensor
    """`[b, ...]`."""
    gradients: Tensor
    """`[b, ...]`."""


@contextmanager
def watched(layers: Mapping[str, nn.Module], *, in_place: bool = True) -> Iterator[list[Call]]:
    """Keep every call of these layers that has one tensor as input and one as output.

    Args:
        layers: By path.
        in_place: Whether the model may change the outputs in place. Then gradients are taken at zeros that are added.
    """
    calls: list[Call] = []
    handles = [layer.register_forward_hook(_hook(path, calls, in_place)) for path, layer in layers.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def uses(calls: list[Call], total: Tensor) -> list[Use]:
    """The calls that the summed losses depend on, with gradients; empties `calls` and frees the graph of `total`."""
    outputs = [call.output for call in calls]
    gradients = torch.autograd.grad(total, outputs, allow_unused=True) if outputs else ()
    pairs = list(zip(calls, gradients, strict=True))
    # Then the caller has the only reference to the inputs, and can free each one once it has its factors.
    calls.clear()
    return [Use(call.path, call.layer, call.inputs, gradient) for call, gradient in pairs if gradient is not None]


def captured(model: nn.Module, losses: Losses, batch: Any, wanted: dict[int, str]) -> dict[str, list[Factors]]:
    """Factors of each parameter for the examples of a batch.

    Args:
        model: The module.
        losses: Each example's loss.
        batch: The examples.
        wanted: Names of the parameters, by their `id`.

    Returns:
        By the parameter's name, one entry per use in a layer that has factors. Other uses of a parameter have no
        entry, so the caller must compare with autograd.

    Raises:
        SpecError: The number of losses is not the number of examples, or no loss depends on a parameter.
        RunError: A loss is not finite, or a module cannot be differentiated; names it.
    """
    layers = {p: m for p, m in model.named_modules() if any(id(w) in wanted for w in m.parameters(recurse=False))}
    with watched(layers) as calls:
        total = summed(model, losses, batch)
    of_layers = [p for layer in layers.values() for p in layer.parameters(recurse=False) if id(p) in wanted]
    with explained(model, lambda: summed(model, losses, batch), of_layers):
        layer_uses = uses(calls, total)
    return _by_parameter(layer_uses, wanted, rows(batch))


def summed(model: nn.Module, losses: Losses, batch: Any) -> Tensor:
    """The sum of the losses of a batch, with its graph.

    Raises:
        SpecError: The sum depends on no parameter.
    """
    with torch.enable_grad():
        total = example_losses(model, losses, batch).sum()
    if not total.requires_grad:
        raise SpecError("depend on none of the parameters", where="losses", remedy="compute them without detaching")
    return total


def example_losses(model: nn.Module, losses: Losses, batch: Any) -> Tensor:
    """Each example's loss, `[b]`.

    Raises:
        SpecError: The number of losses is not the number of examples.
        RunError: A loss is not finite.
    """
    values = losses(model, batch)
    if values.shape != (rows(batch),):
        shape = f"has shape {list(values.shape)}"
        raise SpecError(shape, where="losses", allowed=f"one per example, [{rows(batch)}]")
    if not values.isfinite().all():
        place = int((~values.isfinite()).nonzero()[0, 0])
        raise RunError("the loss is not finite", where=f"example {place} of a block", remedy="look at its inputs")
    return values


def _hook(path: str, calls: list[Call], in_place: bool) -> Callable[[nn.Module, tuple[Any, ...], Any], Tensor | None]:
    def keep(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor | None:
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or not isinstance(output, Tensor):
            return None
        if in_place and not (output.is_floating_point() or output.is_complex()):
            return None
        zeros = output.new_zeros(()).expand(output.shape).requires_grad_() if in_place else None
        calls.append(Call(path, layer, inputs[0].detach(), output if zeros is None else zeros))
        return None if zeros is None else output + zeros

    return keep


def _by_parameter(layer_uses: list[Use], wanted: dict[int, str], size: int) -> dict[str, list[Factors]]:
    by_name: dict[str, list[Factors]] = {}
    while layer_uses:
        use = layer_uses.pop(0)
        # Without one row per example, as in an embedding of positions, a layer has no per-example factors.
        if len(use.inputs) != size or len(use.gradients) != size:
            continue
        for key, value in (factors(use.layer, use.inputs, use.gradients) or {}).items():
            parameter = use.layer._parameters.get(key)
            if parameter is not None and id(parameter) in wanted:
                by_name.setdefault(wanted[id(parameter)], []).append(value)
    return by_name
