"""Gradients of single examples from one pass over many of them, for chains of well-known layers.

An example's gradient of a linear layer's weight is the outer product of what came in and of what came back; a
convolution's is a sum of such products over positions. One pass over a batch has both for all its examples, which need
no passes of their own: several times as fast on one core, for the library's MLP more than for its CNN
(`benchmarks/importance.py`), and equal up to rounding.

It is exact only where every layer runs once, in turn, and no example sees another. That can be read off an
`nn.Sequential` of known layers and off nothing else, so `chain` is strict: everything else goes one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.numerics.precision import wide

Magnitude = Callable[[Tensor], Tensor]
"""`torch.abs` or `torch.square`: anything elementwise with m(a b) = m(a) m(b)."""

CHUNK, NUMBERS = 32, 1 << 17
"""Examples at a time, fewer where inputs are large: at most so many numbers."""

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


def chain(model: nn.Module) -> list[nn.Module] | None:
    """The layers with trainable parameters, in their order; `None` unless the model is a chain as described above."""
    if type(model) is not nn.Sequential:
        return None
    layers = list(_flat(model))
    held = [parameter for layer in layers for parameter in layer.parameters()]
    if not all(_known(layer) for layer in layers) or any(_hooked(module) for module in model.modules()):
        return None
    # A layer or a weight that is there twice has a gradient that is a sum over its places.
    if len(held) != len({id(p) for p in held}) or {id(p) for p in held} != {id(p) for p in model.parameters()}:
        return None
    return [layer for layer in layers if any(parameter.requires_grad for parameter in layer.parameters())]


def chunk_size(inputs: Tensor) -> int:
    """How many examples to take at a time."""
    return max(min(CHUNK, NUMBERS // max(inputs[0].numel(), 1)), 1)


def summed_magnitudes(layers: list[nn.Module], total: Callable[[], Tensor], magnitude: Magnitude) -> list[Tensor]:
    """Sum over the examples of a batch of the magnitude of each one's gradient.

    Args:
        layers: What `chain` returned.
        total: Runs the model on the batch, once, and returns the sum over examples of what is to be differentiated.
        magnitude: Of each entry of a gradient.

    Returns:
        A tensor per trainable parameter.
    """
    seen: list[tuple[Any, Tensor, Tensor]] = []
    hooks = [layer.register_forward_hook(lambda *run: seen.append((run[0], run[1][0], run[2]))) for layer in layers]
    try:
        value = total()
    finally:
        for hook in hooks:
            hook.remove()
    back = torch.autograd.grad(value, [output for _, _, output in seen])
    with torch.no_grad():
        return [
            part
            for (layer, x, _), g in zip(seen, back, strict=True)
            for part in _of_layer(layer, wide(x), wide(g), magnitude)
        ]


def _of_layer(layer: Any, x: Tensor, g: Tensor, magnitude: Magnitude) -> list[Tensor]:
    """Sums for weight and bias from what came in and what came back, as far as they are trainable."""
    count, found = len(x), []
    g = g.reshape(count, -1, g.shape[-1]) if isinstance(layer, nn.Linear) else _positions(g)  # [b, positions, out]
    if layer.weight is not None and layer.weight.requires_grad:
        found.append(_of_weight(layer, x, g, magnitude))
    if layer.bias is not None and layer.bias.requires_grad:
        found.append(magnitude(g.sum(1)).sum(0))
    return found


def _of_weight(layer: Any, x: Tensor, g: Tensor, magnitude: Magnitude) -> Tensor:
    kind = type(layer)
    if kind is nn.Linear:
        return _products(x.reshape(len(x), -1, x.shape[-1]), g, magnitude)
    if kind is nn.Conv2d:
        patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride).transpose(1, 2)
        return _products(patches, g, magnitude).view_as(layer.weight)
    if kind is nn.GroupNorm:
        normal = F.group_norm(x, layer.num_groups, eps=layer.eps)
    else:
        normal = F.batch_norm(x, wide(layer.running_mean), wide(layer.running_var), eps=layer.eps)
    return magnitude((_positions(normal) * g).sum(1)).sum(0)


def _products(x: Tensor, g: Tensor, magnitude: Magnitude) -> Tensor:
    """From `[b, positions, in]` and `[b, positions, out]` to `[out, in]`."""
    if x.shape[1] == 1:
        # The magnitude of a product is the product of magnitudes, and the sum over examples a matrix product.
        return magnitude(g[:, 0]).T @ magnitude(x[:, 0])
    return magnitude(g.transpose(1, 2) @ x).sum(0)


def _positions(tensor: Tensor) -> Tensor:
    """From `[b, channels, ...]` to `[b, positions, channels]`."""
    return tensor.reshape(len(tensor), tensor.shape[1], -1).transpose(1, 2)


def _flat(model: nn.Sequential) -> list[nn.Module]:
    """Layers in the order in which they run; one that is there twice, twice."""
    return [leaf for layer in model for leaf in (_flat(layer) if type(layer) is nn.Sequential else [layer])]


def _known(layer: Any) -> bool:
    kind = type(layer)
    if kind is nn.Conv2d:
        return bool(layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str))
    if kind in (nn.BatchNorm1d, nn.BatchNorm2d):
        return bool(layer.running_mean is not None)  # without, examples see each other in evaluation mode too
    if kind is nn.Flatten:
        return bool(layer.start_dim == 1)
    # What works in place overwrites what a layer before it put out.
    return kind in (nn.Linear, nn.GroupNorm) or (kind in PLAIN and not getattr(layer, "inplace", False))


def _hooked(module: nn.Module) -> bool:
    # A hook may change what runs through.
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
