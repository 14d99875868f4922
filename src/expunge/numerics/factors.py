"""One rule per known layer: its per-example gradients from its input and the gradient at its output.

    dl_i/dW = sum_t r_it c_it^T          (a convolution in groups: one such sum for each group)

For a linear layer r is the gradient at the output at position t of a sequence, and c the input there. A convolution is
a linear layer over patches. For an embedding r is the indicator of the token, and c the gradient at the output. A
vector (a bias, the scale and shift of a norm) has one position, and c = 1. From these factors follow

- each example's gradient (`Factors.gradients`), and sums over examples of its square or absolute value (`sum_of`),
- Gram matrices of gradients, without the gradients (`gram`),
- the second moments of a layer's inputs and of the gradients at its outputs, whose Kronecker product approximates the
  layer's block of the Fisher information (`kronecker_rows`; Martens and Grosse 2015, Grosse and Martens 2016).

A rule describes one call of a layer. The caller must know that no example's loss depends on another example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from expunge.base.errors import MissingError
from expunge.numerics.precision import wide

Magnitude = Callable[[Tensor], Tensor]
"""`torch.abs` or `torch.square`: an elementwise function with m(a b) = m(a) m(b)."""


@dataclass(frozen=True)
class Factors:
    """Each example's gradient by one parameter as outer products, summed over `t` positions in each of `g` groups."""

    rows: Tensor
    """`[b, g, t, o]`; for an embedding, whose rows are indicators, the indices `[b, 1, t]`."""
    right: Tensor | None
    """The columns; `None` for a vector, whose gradient is `rows`."""

    @cached_property
    def columns(self) -> Tensor:
        """`[b, g, t, i]`; 1 for a vector."""
        return torch.ones_like(self.rows[..., :1]) if self.right is None else self.right

    def part(self, examples: slice) -> Factors:
        """The factors of some examples."""
        return Factors(self.rows[examples], None if self.right is None else self.right[examples])

    def gradients(self, shape: torch.Size, piece: slice = slice(None)) -> Tensor:
        """Per-example gradients.

        Args:
            shape: Shape of the parameter.
            piece: Some of the columns; all by default.

        Returns:
            `[b, n]`: each example's gradient, flattened; with `piece` only the entries of these columns.
        """
        columns = self.columns[..., piece]
        if self.rows.ndim == 4:
            return (self.rows.mT @ columns).flatten(1)
        index = self.rows[:, 0, :, None].expand(-1, -1, columns.shape[3])
        zeros = columns.new_zeros(len(columns), shape[0], columns.shape[3])
        return zeros.scatter_add_(1, index, columns[:, 0]).flatten(1)

    def sum_of(self, magnitude: Magnitude, shape: torch.Size) -> Tensor:
        """Sum over examples of the magnitude of each example's gradient, in the parameter's shape."""
        if self.right is None:
            return magnitude(self.rows.flatten(1)).sum(0).view(shape)
        if self.rows.ndim == 3:
            return self._sum_by_index(magnitude, shape)
        if self.rows.shape[1:3] == (1, 1):
            # The magnitude of a product is the product of magnitudes, and the sum over examples a matrix product.
            return (magnitude(self.rows.flatten(1)).T @ magnitude(self.right.flatten(1))).view(shape)
        return magnitude(self.rows.mT @ self.right).sum(0).view(shape)

    def _sum_by_index(self, magnitude: Magnitude, shape: torch.Size) -> Tensor:
        """Sum only over the few rows that an example uses; all other rows of the vocabulary are 0."""
        owner = torch.arange(len(self.rows), device=self.rows.device)[:, None]
        named, place = (owner * shape[0] + self.rows[:, 0]).flatten().unique(return_inverse=True)
        columns = self.columns[:, 0].flatten(0, 1)
        gradients = columns.new_zeros(len(named), columns.shape[1]).index_add_(0, place, columns)
        return columns.new_zeros(shape).index_add_(0, named % shape[0], magnitude(gradients))


class KroneckerRows(NamedTuple):
    """What a weight was multiplied by and the gradient of what came out, one row per example and position.

    With the mean loss of independent examples, `inputs.T @ inputs / len(inputs)` and the same of `gradients` are the
    two Kronecker factors of the weight. Positions that must not count, such as those without a label, are rows to
    leave out of both.
    """

    inputs: Tensor
    """`[n * positions, d_in]`, an example's positions next to each other; of a convolution, its patches."""
    gradients: Tensor
    """`[n * positions, d_out]`, of the summed losses."""


def factors(layer: nn.Module, inputs: Tensor, gradients: Tensor) -> dict[str, Factors] | None:
    """Factors of a layer's own parameters for one call.

    Args:
        layer: The layer.
        inputs: Its input, `[b, ...]`.
        gradients: Gradient of the summed losses at its output, `[b, ...]`.

    Returns:
        By the parameter's name in the layer; `None` if no rule covers the call.
    """
    rule = rule_of(layer)
    return None if rule is None else rule.factors(layer, inputs, gradients)


def kronecker_rows(layer: nn.Module, inputs: Tensor, gradients: Tensor, path: str) -> KroneckerRows:
    """The rows whose second moments are the two Kronecker factors of a layer's weight, for one call.

    Args:
        layer: A linear layer, or a convolution in one group.
        inputs: Its input, `[n, ...]`.
        gradients: Gradient of the summed losses at its output, `[n, ...]`.
        path: The layer's path in its model, for messages.

    Raises:
        MissingError: The weight is not one matrix that multiplies the input; names the layer.
    """
    rule, by_name = rule_of(layer), factors(layer, inputs, gradients)
    if rule is None or rule.inputs is None or by_name is None or by_name["weight"].rows.shape[1] > 1:
        raise no_rule(layer, path, "Linear, Conv1D of transformers, and Conv1d and Conv2d in one group")
    weight = by_name["weight"]
    rows, columns = (side[:, 0].flatten(0, 1) for side in (weight.rows, weight.columns))
    return KroneckerRows(columns, rows) if rule.inputs == "columns" else KroneckerRows(rows, columns)


def no_rule(layer: nn.Module, path: str, allowed: str = "") -> MissingError:
    """The error for a layer without a rule.

    Args:
        layer: The layer.
        path: Its path in the model.
        allowed: The layers that have a rule; by default all of `RULES`.
    """
    names = ", ".join(kind if isinstance(kind, str) else kind.__name__ for kind in RULES)
    return MissingError(
        "there is no rule for this layer's per-example gradients",
        where=f"{path or 'model'} ({type(layer).__name__})",
        allowed=allowed or f"{names}; a convolution with padding by zeros, given as numbers",
        remedy="leave this layer out, or replace it by one of these",
    )


class LayerRule(NamedTuple):
    """The rule of one type of layer."""

    factors: Callable[[Any, Tensor, Tensor], dict[str, Factors] | None]
    """Computes factors from the layer, its input and the gradient at its output; `None` if the input is not a batch."""
    inputs: Literal["rows", "columns"] | None = None
    """The factors that are the inputs of the weight; `None` if the weight does not multiply the input as a matrix."""
    covers: Callable[[Any], bool] = lambda layer: True
    """Whether the rule covers the layer's settings."""


def rule_of(layer: nn.Module) -> LayerRule | None:
    """The rule for a layer with its settings; `None` if there is none, as for complex weights.

    A subclass of a known class has its rule only if it has the same `forward`.
    """
    if any(parameter.is_complex() for parameter in layer.parameters(recurse=False)):
        return None
    for kind in type(layer).__mro__:
        # Classes of optional dependencies are listed by name, so nothing imports them.
        rule = RULES.get(kind) or RULES.get(f"{kind.__module__}.{kind.__qualname__}")
        if rule is not None:
            same = type(layer).forward is kind.forward  # type: ignore[attr-defined]
            return rule if same and rule.covers(layer) else None
    return None


def _linear(layer: nn.Linear, inputs: Tensor, gradients: Tensor) -> dict[str, Factors]:
    rows, columns = _sequence(gradients), _sequence(inputs)
    return _with_bias(layer, Factors(rows, columns), rows, (1, 2))


def _transposed_linear(layer: nn.Module, inputs: Tensor, gradients: Tensor) -> dict[str, Factors]:
    """A linear layer with a weight `[in, out]`."""
    rows, columns = _sequence(inputs), _sequence(gradients)
    return _with_bias(layer, Factors(rows, columns), columns, (1, 2))


def _sequence(tensor: Tensor) -> Tensor:
    """From `[b, ..., n]` to `[b, 1, positions, n]`."""
    shape = tensor.shape
    return tensor.reshape(shape[0], 1, -1, shape[-1])


def _convolution(layer: nn.Conv2d, inputs: Tensor, gradients: Tensor) -> dict[str, Factors] | None:
    if inputs.ndim != 4:
        return None
    patches = F.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
    return _of_patches(layer, patches, gradients)


def _convolution_1d(layer: nn.Conv1d, inputs: Tensor, gradients: Tensor) -> dict[str, Factors] | None:
    """As a convolution in two dimensions, the first of length 1."""
    if inputs.ndim != 3:
        return None
    (kernel,), (dilation,), (stride,), padding = layer.kernel_size, layer.dilation, layer.stride, int(layer.padding[0])
    patches = F.unfold(inputs[:, :, None], (1, kernel), (1, dilation), (0, padding), (1, stride))
    return _of_patches(layer, patches, gradients)


def _of_patches(layer: nn.Conv1d | nn.Conv2d, patches: Tensor, gradients: Tensor) -> dict[str, Factors]:
    """Factors from patches `[b, in * kernel, t]` and gradients `[b, out, ...]`."""
    shape = (len(patches), layer.groups, -1, patches.shape[2])
    weight = Factors(*(side.reshape(shape).transpose(2, 3) for side in (gradients, patches)))
    return _with_bias(layer, weight, gradients, tuple(range(2, gradients.ndim)))


def _with_bias(layer: Any, weight: Factors, gradients: Tensor, positions: tuple[int, ...]) -> dict[str, Factors]:
    """Add the bias, whose gradient is the sum over `positions`, the dimensions of `gradients` to sum over."""
    if layer.bias is None:
        return {"weight": weight}
    # The sum over one position is that position, without a copy.
    alone = positions == (1, 2) and gradients.shape[2] == 1
    return {"weight": weight, "bias": Factors(gradients, None) if alone else _vector(gradients.sum(positions))}


def _embedding(layer: nn.Embedding, inputs: Tensor, gradients: Tensor) -> dict[str, Factors]:
    index, columns = inputs.reshape(len(inputs), 1, -1), gradients.reshape(len(inputs), 1, -1, gradients.shape[-1])
    if layer.padding_idx is not None:
        columns = columns * (index != layer.padding_idx)[..., None]
    return {"weight": Factors(index, columns)}


def _layer_norm(layer: nn.LayerNorm, inputs: Tensor, gradients: Tensor) -> dict[str, Factors]:
    plain = F.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
    shape = (len(inputs), -1, *layer.normalized_shape)
    return _affine(layer, *(side.reshape(shape).flatten(2) for side in (gradients, plain)))


def _group_norm(layer: nn.GroupNorm, inputs: Tensor, gradients: Tensor) -> dict[str, Factors]:
    plain = F.group_norm(inputs, layer.num_groups, eps=layer.eps)
    return _affine(layer, _channels_last(gradients), _channels_last(plain))


def _batch_norm(layer: _BatchNorm, inputs: Tensor, gradients: Tensor) -> dict[str, Factors] | None:
    if layer.training:
        return None
    assert layer.running_mean is not None and layer.running_var is not None
    plain = F.batch_norm(inputs, wide(layer.running_mean), wide(layer.running_var), eps=layer.eps)
    return _affine(layer, _channels_last(gradients), _channels_last(plain))


def _channels_last(tensor: Tensor) -> Tensor:
    """From `[b, channels, ...]` to `[b, positions, channels]`."""
    return tensor.reshape(*tensor.shape[:2], -1).transpose(1, 2)


def _affine(layer: Any, gradients: Tensor, plain: Tensor) -> dict[str, Factors]:
    """Scale and shift from `[b, positions, channels]`."""
    scale = {} if layer.weight is None else {"weight": _vector((gradients * plain).sum(1))}
    return scale if layer.bias is None else scale | {"bias": _vector(gradients.sum(1))}


def _vector(gradients: Tensor) -> Factors:
    return Factors(gradients.view(len(gradients), 1, 1, -1), None)


def _pads_by_zeros(layer: nn.Conv1d | nn.Conv2d) -> bool:
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _is_plain(layer: nn.Embedding) -> bool:
    return layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse


def _has_statistics(layer: _BatchNorm) -> bool:
    # Without running statistics, examples depend on each other in evaluation mode too.
    return layer.running_mean is not None


RULES: Mapping[type[nn.Module] | str, LayerRule] = {
    nn.Linear: LayerRule(_linear, "columns"),
    "transformers.pytorch_utils.Conv1D": LayerRule(_transposed_linear, "rows"),
    nn.Conv1d: LayerRule(_convolution_1d, "columns", _pads_by_zeros),
    nn.Conv2d: LayerRule(_convolution, "columns", _pads_by_zeros),
    nn.Embedding: LayerRule(_embedding, covers=_is_plain),
    nn.LayerNorm: LayerRule(_layer_norm),
    nn.GroupNorm: LayerRule(_group_norm),
    _BatchNorm: LayerRule(_batch_norm, covers=_has_statistics),
}
"""By class, or by full name for a class of an optional dependency."""
