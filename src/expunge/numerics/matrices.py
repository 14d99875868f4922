"""The weight of a layer as a matrix `[d_out, d_in]` that multiplies the layer's input, whatever the layer's type."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from expunge.numerics.factors import rule_of

MATRICES = "Linear, Conv1D of transformers, and Conv1d and Conv2d in one group"
"""The layers whose weight is one matrix, for messages."""


def is_matrix(layer: nn.Module) -> bool:
    """Whether the layer's weight is one matrix that multiplies its input (of a convolution: its patches)."""
    rule = rule_of(layer)
    return rule is not None and rule.inputs is not None and getattr(layer, "groups", 1) == 1


def weight_matrix(layer: nn.Module) -> Tensor:
    """The weight, `[d_out, d_in]`, detached; it may or may not share memory with the parameter."""
    weight: Tensor = layer.weight.detach()  # type: ignore[operator]
    return weight.T if _is_transposed(layer) else weight.flatten(1)


def input_dim(layer: nn.Module) -> int:
    """The dimension of the weight along which the layer's inputs lie; of a convolution, its channels."""
    return 0 if _is_transposed(layer) else 1


def set_weight_matrix(layer: Any, matrix: Tensor) -> None:
    """Write the weight from a matrix `[d_out, d_in]`, in place."""
    values = matrix.T if _is_transposed(layer) else matrix.view(layer.weight.shape)
    with torch.no_grad():
        layer.weight.copy_(values)


def working_bytes(d_out: int, d_in: int) -> int:
    """Memory in bytes that the decomposition of both factors and the edit of one layer take at most.

    In float64: of the larger factor a copy, its eigenvectors and twice its size as LAPACK's workspace; the other
    factor's eigenvectors; and six matrices of the weight's size to sort and to cut.
    """
    return 8 * (4 * max(d_out, d_in) ** 2 + d_out**2 + d_in**2 + 6 * d_out * d_in)


def _is_transposed(layer: nn.Module) -> bool:
    rule = rule_of(layer)
    return rule is not None and rule.inputs == "rows"
