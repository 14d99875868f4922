"""Types of running sums: bfloat16 has about three digits, so a sum of many terms in it stops growing."""

from __future__ import annotations

import torch
from torch import Tensor

from expunge.numerics.real import is_continuous

_WIDE = (torch.float32, torch.float64)


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """The type of a running sum of numbers of a type: float32 or complex64, or their own type if that is wider."""
    return torch.promote_types(dtype, torch.float32)


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32, complex64 or wider, for sums, squares and losses; integer tensors stay unchanged."""
    # The common case first: this runs for every layer of every batch.
    if tensor.dtype in _WIDE or not is_continuous(tensor):
        return tensor
    return tensor.to(wide_type(tensor.dtype))


def zeros_for(tensor: Tensor) -> Tensor:
    """Zeros for a running sum of tensors like this one: its shape and device, in float32 or wider."""
    return torch.zeros_like(tensor, dtype=wide_type(tensor.dtype))
