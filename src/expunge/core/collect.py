"""Turn the user's data set into tensors: a map-style data set, a pair of tensors, or an iterable of batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, TensorDataset

from expunge.base.errors import SpecError
from expunge.core.copies import row_digests
from expunge.core.items import NUMBER_CLASSES, frame_error, items_of_columns, notes, padded, pair, tensor_of
from expunge.core.loaders import dataset_of
from expunge.reporting.progress import Progress

READ_TWICE = 16
"""Items that are read twice, to find out whether an item changes from read to read."""
ALLOWED = "a data set, a pair of tensors or arrays, or batches of (x, y)"


@dataclass(frozen=True)
class Collected:
    """Inputs `[n, ...]` and targets `[n]` or `[n, t]`, and the items in the user's own format."""

    inputs: Tensor | None
    """`None` where they are read when they are needed."""
    targets: Tensor
    items: Dataset[Any]
    digests: Sequence[bytes] = ()
    """Of the inputs of each item, where they are not in memory."""


def collect(source: Any, *, where: str) -> Collected:
    """Materialise a data set.

    Args:
        source: One of three forms. A pair of tensors or NumPy arrays; arrays in double precision become torch's default
            type. A map-style data set of `(x, y)` or of dicts; further fields of a tuple are left out, and PIL images
            become tensors. An iterable of batches of the same; a list holds batches if its targets have one dimension
            more than those of single items. A `DataLoader` stands for its data set, and must give each example once.
            Dicts hold an input under one of `items.INPUTS` and a target under one of `items.TARGETS`. Token ids without
            labels are their own labels. Labels of tokens are shifted to the next token here. Texts of different lengths
            are padded on the right. One dict of
            columns `[n, ...]`, as a tokenizer returns, is a data set of `n` items.
        where: Name of the argument, for messages.

    Returns:
        Tensors and items.

    Raises:
        SpecError: The data set is empty, an item has no input or no target, or the items' shapes differ.
    """
    source = _opened(source, where)
    if _is_pair(source):
        inputs, targets = _array(source[0], "input", where), _array(source[1], "target", where)
        _require_aligned(inputs, targets, where)
        return Collected(inputs, targets, TensorDataset(inputs, targets))
    if _is_map_style(source) and not _is_batches(source, where):
        _say_notes(source, where)
        pairs = [pair(source[i], where, i) for i in range(len(source))]
        inputs, targets = _joined(torch.stack, pairs, where)
        if _changes(source, pairs, where):
            Progress().say(
                f"{where}: items change from read to read, as under a random augmentation. One reading, which the seed "
                "of the case decides, is kept to unlearn and to measure; `train` gets your data set as it is"
            )
        return Collected(inputs, targets, source)
    if isinstance(source, Iterable) and not isinstance(source, Mapping | str):
        batches = list(source)
        if not batches or pair(batches[0], where, 0)[1].ndim == 0:
            return collect(batches, where=where)
        _say_notes(batches, where)
        pairs = [pair(batch, where, i) for i, batch in enumerate(batches)]
        for batch_inputs, batch_targets in pairs:
            _require_aligned(batch_inputs, batch_targets, where)
        inputs, targets = _joined(torch.cat, pairs, where)
        rows: Any = [row for batch in batches if isinstance(batch, Mapping) for row in _rows(batch)]
        return Collected(inputs, targets, rows or TensorDataset(inputs, targets))
    raise SpecError(f"found {type(source).__name__}", where=where, allowed=ALLOWED)


class ItemInputs(Dataset[Any]):
    """The inputs of a data set's items, without their targets."""

    def __init__(self, items: Dataset[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Tensor:
        return pair(self.items[index], "data", index)[0]


def collect_lazily(source: Any, *, where: str) -> Collected:
    """Read the targets of a map-style data set, and leave its inputs where they are.

    Args:
        source: A map-style data set of `(x, y)` or of dicts, or a loader over one; each item is read once here, and
            kept no longer.
        where: What it is for, for messages.

    Returns:
        Targets, items and digests of inputs; no inputs.

    Raises:
        SpecError: It is no map-style data set, an item has no input or no target, or items change from read to read.
    """
    source = _opened(source, where)
    if not _is_map_style(source):
        raise SpecError(
            f"found {type(source).__name__}",
            where=where,
            allowed="a map-style data set, with __getitem__ and __len__, where in_memory is False",
        )
    _say_notes(source, where)
    targets, digests, first = [], [], []
    for i in range(len(source)):
        inputs, target = pair(source[i], where, i)
        first += [(inputs, target)] if i < READ_TWICE else []
        targets.append(target)
        digests += row_digests(inputs.unsqueeze(0))
    if _changes(source, first, where):
        raise SpecError(
            "items change from read to read, as under a random augmentation",
            where=where,
            allowed="the same item on every read, where in_memory is False",
            remedy="leave the augmentation out of this data set; `train` can apply it",
        )
    return Collected(None, _join(torch.stack, targets, where), source, digests)


def items_of(parts: Sequence[Collected]) -> ConcatDataset[Any]:
    """The items of all parts, with consecutive ids."""
    return ConcatDataset([part.items for part in parts])


def _opened(source: Any, where: str) -> Any:
    """The source without a loader around it; refuses what holds no examples."""
    if isinstance(source, DataLoader):
        source = dataset_of(source, where)
    if isinstance(source, IterableDataset):
        raise SpecError(
            f"{type(source).__name__} is a stream, and its examples have no ids",
            where=where,
            allowed=ALLOWED,
            remedy=f"read it into a list: {where}=list(dataset)",
        )
    for value in source if isinstance(source, tuple | list) and len(source) == 2 else (source,):
        if hasattr(value, "to_numpy"):
            raise frame_error(value, where)
    return items_of_columns(source, where) if isinstance(source, Mapping) else source


def _is_map_style(source: Any) -> bool:
    return (
        hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, DataLoader | Mapping)
    )


def _is_pair(source: Any) -> bool:
    """Whether it is a pair of tensors or arrays, or a tuple of two lists of the same length above 2."""
    if not isinstance(source, tuple | list) or len(source) != 2:
        return False
    lists = isinstance(source, tuple) and all(isinstance(s, list) for s in source)
    return all(isinstance(s, Tensor | np.ndarray) for s in source) or (lists and len(source[0]) == len(source[1]) > 2)


def _array(values: Any, what: str, where: str) -> Tensor:
    """A tensor. NumPy's default type is float64, so float64 arrays become torch's default type."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "US" and what == "target":
        raise SpecError("the targets are text", where=where, allowed="numbers", remedy=NUMBER_CLASSES)
    tensor = tensor_of(values, what, where)
    double = not isinstance(values, Tensor) and tensor.dtype == torch.float64
    return tensor.to(torch.get_default_dtype()) if double else tensor


def _require_aligned(inputs: Tensor, targets: Tensor, where: str) -> None:
    if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets):
        raise SpecError(
            f"inputs have shape {list(inputs.shape)} and targets {list(targets.shape)}",
            where=where,
            allowed="as many targets as inputs",
        )


def _is_batches(source: Any, where: str) -> bool:
    """Whether a list holds batches, not items: its targets are `[b, t]`, or `[b]` with inputs that are not tokens."""
    if not isinstance(source, list) or not source:
        return False
    inputs, targets = pair(source[0], where, 0)
    aligned = inputs.ndim > 1 and targets.ndim > 0 and len(inputs) == len(targets)
    return aligned and (targets.ndim == 2 or (targets.ndim == 1 and targets.shape != inputs.shape))


def _rows(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The items of a batch in the user's own format, for the user's training: labels not shifted, masks kept."""
    count = min(len(value) for value in batch.values())
    return [{key: value[i] for key, value in batch.items()} for i in range(count)]


def _say_notes(source: Any, where: str) -> None:
    for note in notes(source[0]) if len(source) else ():
        Progress().say(f"{where}: {note}")


def _changes(source: Any, pairs: Sequence[tuple[Tensor, Tensor]], where: str) -> bool:
    """Whether reading the first items again gives other inputs."""
    again = (pair(source[i], where, i)[0] for i in range(min(READ_TWICE, len(pairs))))
    return any(not torch.equal(second, first) for second, (first, _) in zip(again, pairs, strict=False))


def _joined(how: Any, pairs: Sequence[tuple[Tensor, Tensor]], where: str) -> tuple[Tensor, Tensor]:
    pairs = padded(pairs)
    return _join(how, [inputs for inputs, _ in pairs], where), _join(how, [target for _, target in pairs], where)


def _join(how: Any, tensors: list[Tensor], where: str) -> Tensor:
    if not tensors:
        raise SpecError("it holds no examples", where=where, remedy="give at least one")
    shapes = {tuple(t.shape[1:] if how is torch.cat else t.shape) for t in tensors}
    if len(shapes) > 1:
        raise SpecError(
            f"examples have shapes {sorted(shapes)[:3]}", where=where, allowed="one shape", remedy="pad or crop them"
        )
    joined: Tensor = how(tensors)
    return joined
