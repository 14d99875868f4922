"""A batch here is a tensor, or a tuple or dict of tensors, whose first dimension counts examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from expunge.base.errors import SpecError


def rows(batch: Any) -> int:
    """Number of examples.

    Raises:
        SpecError: The batch is not of this form.
    """
    first = next((t for t in _members(batch) if isinstance(t, Tensor) and t.ndim), None)
    if first is None:
        raise SpecError(
            f"a batch is {type(batch).__name__}", where="batches", allowed="a tensor, or a tuple or dict of tensors"
        )
    return len(first)


def take(batch: Any, part: slice | Tensor) -> Any:
    """Some of the examples, by a slice or by number, in the same container; what is not a tensor stays unchanged."""
    if isinstance(batch, Mapping):
        return type(batch)({key: _cut(value, part) for key, value in batch.items()})  # type: ignore[call-arg]
    if isinstance(batch, tuple):
        members = [_cut(value, part) for value in batch]
        return type(batch)._make(members) if hasattr(batch, "_make") else tuple(members)
    if isinstance(batch, list):
        return [_cut(value, part) for value in batch]
    return _cut(batch, part)


def parts(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `count` in order."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _members(batch: Any) -> list[Any]:
    if isinstance(batch, Mapping):
        return list(batch.values())
    return list(batch) if isinstance(batch, tuple | list) else [batch]


def _cut(value: Any, part: slice | Tensor) -> Any:
    return value[part] if isinstance(value, Tensor) and value.ndim else value
