"""Sums over examples of the magnitude of each example's gradient, from one pass over many examples.

If gradients follow from a layer's input and the gradient at its output (`factors`), an example needs no pass of its
own. This is several times as fast on one core (`benchmarks/importance.py`), for the library's MLP more than for its
CNN, and equal up to rounding.

It is exact only if every layer runs once, in turn, and no example changes the result of another. Only an
`nn.Sequential` of known layers guarantees that, so `chain` is strict. All other models take one pass per example. What
a chain does not show, such as a hook of a weight or another `forward`, the caller must compare with autograd.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from expunge.numerics._capture import Call, uses, watched
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


def following(layers: Mapping[str, nn.Module]) -> AbstractContextManager[list[Call]]:
    """Inside, each pass of the model adds its calls of these layers to a list, for `summed_magnitudes`.

    Args:
        layers: The result of `chain`.
    """
    return watched(layers, in_place=False)


def summed_magnitudes(calls: list[Call], total: Tensor, magnitude: Magnitude) -> list[Tensor]:
    """Sum over the examples of a batch of the magnitude of each example's gradient.

    Args:
        calls: The list of `following` after one pass of the model over the batch; it is emptied.
        total: The sum over examples of the quantity to differentiate, from this pass.
        magnitude: Applied to each entry of a gradient.

    Returns:
        One tensor per trainable parameter.

    Raises:
        MissingError: A layer's rule does not cover its call; names the layer.
    """
    layer_uses, sums = uses(calls, total), []
    with torch.no_grad():
        for path, layer, inputs, gradients in layer_uses:
            by_name = factors(layer, wide(inputs), wide(gradients))
            if by_name is None:
                raise no_rule(layer, path)
            for key, parameter in layer._parameters.items():
                if parameter is not None and parameter.requires_grad:
                    sums.append(by_name[key].sum_of(magnitude, parameter.shape))
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
