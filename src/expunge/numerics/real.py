"""Complex weights as pairs of real weights: a complex number is its real and its imaginary part.

Norms, inner products, noise, masks, rounding and importances act on the two parts, so a model with complex weights and
the same model with real pairs give the same numbers. PyTorch's gradient by a complex weight z is dL/dRe z + i dL/dIm z:
its parts are the gradients by the parts, and `autograd.grad` with a complex vector v is the derivative along <v, .> of
the pairs. So only flat vectors and elementwise rules need a view; sums and multiples of tensors need none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def is_continuous(tensor: Tensor) -> bool:
    """Whether the entries are real or complex numbers, and not whole numbers or truth values."""
    return tensor.is_floating_point() or tensor.is_complex()


def real_type(dtype: torch.dtype) -> torch.dtype:
    """The type of the parts of a complex type; any other type itself."""
    return dtype.to_real() if dtype.is_complex else dtype


def as_real(tensor: Tensor) -> Tensor:
    """A view of a complex tensor as real numbers, `[..., 2]`; any other tensor itself. Edits in place reach both."""
    # A gradient may be a conjugate that is not computed yet, which has no such view.
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def as_complex(parts: Tensor, like: Tensor) -> Tensor:
    """The inverse of `as_real`: complex if `like` is, in its shape; any other `like` only gives the shape."""
    if not like.is_complex():
        return parts.reshape(like.shape)
    # Not a view: the parts may start at an odd place of a longer vector, where complex numbers cannot.
    return torch.complex(*parts.reshape(*like.shape, 2).unbind(-1))


def real_size(tensor: Tensor) -> int:
    """Number of real numbers: two per complex entry."""
    return tensor.numel() * (2 if tensor.is_complex() else 1)


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """All entries as one real vector `[p]`; the parts of a complex entry are neighbours."""
    # Not views of complex entries, whose derivative would be a view of a vector at any place: see `as_complex`.
    pairs = (torch.stack([t.real, t.imag], -1) if t.is_complex() else t for t in tensors)
    return torch.cat([tensor.flatten() for tensor in pairs])


def split(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of `flat`: a tensor in the shape of each in `like`, complex where that is complex."""
    pieces = vector.split([real_size(tensor) for tensor in like])
    return [as_complex(piece, tensor) for piece, tensor in zip(pieces, like, strict=True)]
