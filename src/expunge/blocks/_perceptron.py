"""Find the perceptron that a bilinear layer replaces: its modules, its widths, and its weights if it is gated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.base.errors import SpecError
from expunge.blocks._channels import channel_dim, writer_of
from expunge.blocks._hidden import inputs_of, outputs_of
from expunge.core.modules import evaluating, is_transposed

_NO_ACTIVATION = ("Softmax", "Softmax2d", "Softmin", "LogSoftmax", "MultiheadAttention", "GLU")
"""Classes beside the activations in PyTorch that are no function of each entry alone."""
AGREE = 1e-4
"""Largest relative difference between a gated perceptron and its formula."""


@dataclass(frozen=True, eq=False)
class Perceptron:
    """What a bilinear layer replaces.

    Args:
        inputs: Width of the input.
        outputs: Width of the output.
        weights: Number of weights, without biases.
        emptied: Paths, beside the layer's own, that become the identity.
        dim: The dimension of the channels.
    """

    inputs: int
    outputs: int
    weights: int
    emptied: tuple[str, ...] = field(default=())
    dim: int = -1


def perceptron_at(model: nn.Module, path: str) -> Perceptron:
    """The perceptron at a path: an activation, the first of two linear layers, or a module that holds all of it.

    Raises:
        SpecError: There is none; the message names the module and its shapes.
    """
    module = model.get_submodule(path)
    if is_activation(module):
        return _activation(model, path)
    if _is_linear(module):
        return _pair(model, path, module)
    linear = _linears(path, module)
    if len(linear) == 2 and outputs_of(linear[0]) == inputs_of(linear[1]):
        return Perceptron(inputs_of(linear[0]), outputs_of(linear[1]), _weights(linear))
    if len(linear) == 3 and _is_gated(linear):
        return Perceptron(inputs_of(linear[0]), outputs_of(linear[2]), _weights(linear))
    allowed = "two layers, of which the second reads the first, or three, of which the third reads the product"
    raise _unfit(path, module, f"holds {_shapes(linear)}", allowed)


def gated_weights(path: str, module: nn.Module) -> tuple[Any, Any, Any]:
    """The layer behind the gate, the other one, and the last one, of a perceptron f(x) = P [silu(W x) * (V x)].

    Raises:
        SpecError: It computes something else; the message names the module.
    """
    linear = _linears(path, module)
    if len(linear) != 3 or not _is_gated(linear):
        raise _unfit(path, module, f"holds {_shapes(linear)}", "a gated perceptron of three linear layers")
    first, second, last = linear
    weight = first.weight
    x = torch.randn(4, inputs_of(first), generator=torch.Generator().manual_seed(0)).to(weight)
    with torch.no_grad(), evaluating(module):
        wanted = module(x)
        for gate, value in ((first, second), (second, first)):
            if _agree(wanted, last(F.silu(gate(x)) * value(x))):
                return gate, value, last
    raise _unfit(path, module, "does not compute P [silu(W x) * (V x)]", "a perceptron with a SiLU gate")


def _agree(wanted: Any, given: Tensor) -> bool:
    return (
        isinstance(wanted, Tensor)
        and wanted.shape == given.shape
        and bool((wanted - given).abs().max() <= AGREE * wanted.abs().max())
    )


def is_activation(module: nn.Module) -> bool:
    """Whether a module is an activation: PyTorch's and Hugging Face's classes without weights."""
    home = type(module).__module__
    known = home in ("torch.nn.modules.activation", "transformers.activations")
    return known and type(module).__name__ not in _NO_ACTIVATION and not any(True for _ in module.parameters())


def _activation(model: nn.Module, path: str) -> Perceptron:
    writer: Any = writer_of(model, path)
    width = None if writer is None else _width(writer)
    if width is None:
        finding = "follows no layer" if writer is None else f"follows a {type(writer).__name__}, whose width is unknown"
        raise _unfit(path, model.get_submodule(path), finding, "an activation behind a layer")
    return Perceptron(width, width, 3 * width * width, dim=channel_dim(writer))


def _width(writer: Any) -> int | None:
    """Number of channels behind a layer."""
    if _is_linear(writer) or isinstance(writer, nn.modules.conv._ConvNd):
        return outputs_of(writer)
    for name in ("num_channels", "num_features"):
        if hasattr(writer, name):
            return int(getattr(writer, name))
    return int(writer.normalized_shape[-1]) if isinstance(writer, nn.LayerNorm) else None


def _pair(model: nn.Module, path: str, first: Any) -> Perceptron:
    leaves = [(p, m) for p, m in model.named_modules() if not any(True for _ in m.children())]
    after = leaves[[p for p, _ in leaves].index(path) + 1 :]
    count = next((i for i, (_, m) in enumerate(after) if _is_linear(m)), None)
    allowed = "a linear layer, one activation, and a linear layer that reads it"
    if count is None:
        raise _unfit(path, first, "no linear layer comes after it", allowed)
    between, (reader_path, reader) = after[:count], after[count]
    if len(between) != 1 or not is_activation(between[0][1]):
        kinds = ", ".join(f"{p} ({type(m).__name__})" for p, m in between) or "nothing"
        raise _unfit(path, first, f"between it and {reader_path!r} lies {kinds}", allowed)
    if outputs_of(first) != inputs_of(reader):
        finding = f"writes {outputs_of(first)} values and {reader_path!r} reads {inputs_of(reader)}"
        raise _unfit(path, first, finding, allowed)
    emptied = (between[0][0], reader_path)
    return Perceptron(inputs_of(first), outputs_of(reader), _weights([first, reader]), emptied)


def _linears(path: str, module: nn.Module) -> list[Any]:
    """The linear layers in a module that holds nothing else but activations and dropout.

    Raises:
        SpecError: It holds something else.
    """
    linear = []
    for name, part in module.named_modules():
        if _is_linear(part):
            linear.append(part)
        elif any(True for _ in part.children()) or isinstance(part, nn.Identity | nn.Dropout) or is_activation(part):
            if any(True for _ in part.parameters(recurse=False)):
                raise _unfit(path, module, f"holds weights of its own in {name or path!r}", "linear layers only")
        else:
            finding = f"{name!r} in it is a {type(part).__name__}" if name else "is no perceptron"
            raise _unfit(path, module, finding, "linear layers, activations and dropout")
    return linear


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_transposed(module)


def _is_gated(linear: list[Any]) -> bool:
    first, second, last = linear
    same = inputs_of(first) == inputs_of(second) and outputs_of(first) == outputs_of(second)
    return same and outputs_of(first) == inputs_of(last)


def _weights(linear: list[Any]) -> int:
    return sum(int(layer.weight.numel()) for layer in linear)


def _shapes(linear: list[Any]) -> str:
    shapes = ", ".join(f"{inputs_of(layer)} -> {outputs_of(layer)}" for layer in linear)
    return f"{len(linear)} linear layers" + (f" ({shapes})" if shapes else "")


def _unfit(path: str, module: nn.Module, finding: str, allowed: str) -> SpecError:
    weight = getattr(module, "weight", None)
    kind = type(module).__name__ + (f" with weights {list(weight.shape)}" if isinstance(weight, Tensor) else "")
    return SpecError(f"{path!r} ({kind}) {finding}", where="at", allowed=allowed, remedy="name another module")
