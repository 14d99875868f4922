"""Sums over examples of the magnitude of each example's gradient, from one pass over many examples.

If gradients follow from a layer's input and the gradient at its output (`factors`), an example needs no pass of its
own. This is several times as fast on one core (`benchmarks/importance.py`), for the library's MLP more than for its
CNN, and equal up to rounding.

It is exact only if every layer runs once, in turn, and no example changes the result of another. Only an
`nn.Sequential` of known layers guarantees that, so `chain` is strict. All other models take one pass per example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from expunge.numerics._capture import uses, watched
from expunge.numerics.factors import RULES, Magnitude, factors, no_rule, rule_of
from expunge.numerics.precision import wide

CHUNK, NUMBERS = 32, 1 << 17
"""Examples at a time, and the largest number of input entries at a time; large inputs mean fewer examples."""

BATCH_NORMS = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
PLAIN = {
    nn.Identity,
    nn.Flatten,
    nn.Dropout,
    nn.ReLU,
    nn.GELU,
    nn.Tanh,
    nn.Sigmoid,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
}
"""Layers without parameters; in evaluation mode."""


def chain(model: nn.Module) -> dict[str, nn.Module] | None:
    """The layers with trainable parameters, by path, in the order in which they run.

    Returns:
        `None` if the model is not a chain as described above.
    """
    if type(model) is not nn.Sequential:
        return None
    layers = _flat(model)
    parameters = [parameter for layer in layers.values() for parameter in layer.parameters()]
    if not all(_known(layer) for layer in layers.values()) or any(_hooked(module) for module in model.modules()):
        return None
    # The gradient of a layer or weight that occurs twice is a sum over its uses.
    ids = {id(parameter) for parameter in parameters}
    if len(parameters) != len(ids) or ids != {id(parameter) for parameter in model.parameters()}:
        return None
    return {path: layer for path, layer in layers.items() if any(p.requires_grad for p in layer.parameters())}


def chunk_size(inputs: Tensor) -> int:
    """Number of examples to take at a time."""
    return max(min(CHUNK, NUMBERS // max(inputs[0].numel(), 1)), 1)


def summed_magnitudes(
    layers: Mapping[str, nn.Module], total: Callable[[], Tensor], magnitude: Magnitude
) -> list[Tensor]:
    """Sum over the examples of a batch of the magnitude of each example's gradient.

    Args:
        layers: The result of `chain`.
        total: Runs the model on the batch, once, and returns the sum over examples of the quantity to differentiate.
        magnitude: Applied to each entry of a gradient.

    Returns:
        One tensor per trainable parameter.

    Raises:
        MissingError: A layer's rule does not cover its call; names the layer.
    """
    with watched(layers, in_place=False) as calls:
        value = total()
    layer_uses, sums = uses(calls, value), []
    with torch.no_grad():
        for use in layer_uses:
            by_name = factors(use.layer, wide(use.inputs), wide(use.gradients))
            if by_name is None:
                raise no_rule(use.layer, use.path)
            trained = [(key, p) for key, p in use.layer._parameters.items() if p is not None and p.requires_grad]
            sums += [by_name[key].sum_of(magnitude, parameter.shape) for key, parameter in trained]
    return sums


def _flat(model: nn.Sequential, prefix: str = "") -> dict[str, nn.Module]:
    """Layers in the order in which they run; a layer that occurs twice is listed twice."""
    flat: dict[str, nn.Module] = {}
    for name, layer in model._modules.items():
        path = f"{prefix}{name}"
        flat |= _flat(layer, f"{path}.") if type(layer) is nn.Sequential else {path: layer}
    return flat


def _known(layer: Any) -> bool:
    kind = type(layer)
    if kind in RULES or kind in BATCH_NORMS:
        return rule_of(layer) is not None
    if kind is nn.Flatten:
        return bool(layer.start_dim >= 1)
    # An in-place layer overwrites the output of the layer before it.
    return kind in PLAIN and not getattr(layer, "inplace", False)


def _hooked(module: nn.Module) -> bool:
    # A hook may change inputs or outputs.
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
