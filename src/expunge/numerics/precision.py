"""Types of running sums: bfloat16 holds three digits, so that a sum of many terms in it stops to grow."""

from __future__ import annotations

import torch
from torch import Tensor


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """The type of a running sum of such numbers: float32, or their own where that is wider."""
    return torch.promote_types(dtype, torch.float32)


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32 or wider, in which sums, squares and losses are computed; whole numbers are kept."""
    return tensor.to(wide_type(tensor.dtype)) if tensor.is_floating_point() else tensor


def zeros_for(tensor: Tensor) -> Tensor:
    """A running sum of tensors like this one, at zero: its shape and device, in float32 or wider."""
    return torch.zeros_like(tensor, dtype=wide_type(tensor.dtype))
