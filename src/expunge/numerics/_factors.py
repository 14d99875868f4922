"""How a layer's per-example gradient factorises: as a short sum of outer products that backpropagation holds anyway.

    dl_i/dW = sum_t r_it c_it^T          (groups of a convolution: one such sum each)

For a linear layer r is the gradient of the output at position t of a sequence, c the input there; a convolution is a
linear layer over patches; an embedding has r the indicator of the token, and c the gradient of the output. A vector
(bias, scale and shift of a norm) has a single row and c = 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True)
class Factors:
    """Outer products whose sum over `t` is each example's gradient of one parameter, `[b, g, o, i]` reshaped."""

    rows: Tensor
    """`[b, g, t, o]`; or, where all are indicators of one index, those indices `[b, 1, t]`."""
    columns: Tensor
    """`[b, g, t, i]`."""

    def part(self, examples: slice) -> Factors:
        """Those of some examples."""
        return Factors(self.rows[examples], self.columns[examples])


def factors(layer: nn.Module, inputs: Tensor, slopes: Tensor) -> dict[str, Factors] | None:
    """Factors of a layer's own parameters for one call.

    Args:
        layer: The layer.
        inputs: What it was called with, `[b, ...]`.
        slopes: Gradient of the summed losses by what it returned, `[b, ...]`.

    Returns:
        By the parameter's name in the layer; `None` where the layer has no such form.
    """
    form = next((form for kind, form in FORMS.items() if isinstance(layer, kind)), None)
    # A class of the same name that computes something else has another `forward`.
    if form is None or type(layer).forward not in FORWARDS:
        return None
    return form(layer, inputs, slopes)


def _linear(layer: nn.Linear, inputs: Tensor, slopes: Tensor) -> dict[str, Factors]:
    rows, columns = (t.reshape(len(t), 1, -1, t.shape[-1]) for t in (slopes, inputs))
    return {"weight": Factors(rows, columns), "bias": _vector(rows.sum((1, 2)))}


def _convolution(layer: nn.Conv2d, inputs: Tensor, slopes: Tensor) -> dict[str, Factors] | None:
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str) or inputs.ndim != 4:
        return None
    patches = F.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    rows, columns = (t.reshape(len(t), layer.groups, -1, patches.shape[2]).transpose(2, 3) for t in (slopes, patches))
    return {"weight": Factors(rows, columns), "bias": _vector(slopes.sum((2, 3)))}


def _embedding(layer: nn.Embedding, inputs: Tensor, slopes: Tensor) -> dict[str, Factors] | None:
    if layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse:
        return None
    index, columns = inputs.reshape(len(inputs), 1, -1), slopes.reshape(len(inputs), 1, -1, slopes.shape[-1])
    if layer.padding_idx is not None:
        columns = columns * (index != layer.padding_idx)[..., None]
    return {"weight": Factors(index, columns)}


def _layer_norm(layer: nn.LayerNorm, inputs: Tensor, slopes: Tensor) -> dict[str, Factors]:
    plain = F.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
    shape = (len(inputs), -1, *layer.normalized_shape)
    return _affine(slopes.reshape(shape).flatten(2), plain.reshape(shape).flatten(2))


def _group_norm(layer: nn.GroupNorm, inputs: Tensor, slopes: Tensor) -> dict[str, Factors]:
    plain = F.group_norm(inputs, layer.num_groups, eps=layer.eps)
    return _affine(slopes.flatten(2).transpose(1, 2), plain.flatten(2).transpose(1, 2))


def _batch_norm(layer: _BatchNorm, inputs: Tensor, slopes: Tensor) -> dict[str, Factors]:
    plain = F.batch_norm(inputs, layer.running_mean, layer.running_var, eps=layer.eps)
    rows, columns = (t.reshape(*t.shape[:2], -1).transpose(1, 2) for t in (slopes, plain))
    return _affine(rows, columns)


def _affine(slopes: Tensor, plain: Tensor) -> dict[str, Factors]:
    """Scale and shift from `[b, positions, channels]`."""
    return {"weight": _vector((slopes * plain).sum(1)), "bias": _vector(slopes.sum(1))}


def _vector(gradients: Tensor) -> Factors:
    rows = gradients[:, None, None]
    return Factors(rows, torch.ones_like(rows[..., :1]))


# Their `forward` decides, so that a subclass with its own is not taken for them.
FORMS: dict[type[nn.Module], Callable[..., dict[str, Factors] | None]] = {
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    _BatchNorm: _batch_norm,
}
FORWARDS = {kind.forward for kind in FORMS}
