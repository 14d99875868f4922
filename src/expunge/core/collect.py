"""Turn the user's data set into tensors: a map-style data set, a pair of tensors, or an iterable of batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, TensorDataset

from expunge.base.errors import SpecError
from expunge.core.data import IGNORE

INPUTS = ("pixel_values", "input_ids", "x", "inputs", "image")
TARGETS = ("labels", "label", "y", "targets")


@dataclass(frozen=True)
class Collected:
    """Inputs `[n, ...]` and targets `[n]` or `[n, t]`, and the items in the user's own format."""

    inputs: Tensor | None
    """`None` where they are read when they are needed."""
    targets: Tensor
    items: Dataset[Any]


def collect(source: Any, *, where: str) -> Collected:
    """Materialise a data set.

    Args:
        source: One of three forms. A pair of tensors or NumPy arrays; arrays in double precision become torch's default
            type. A map-style data set of `(x, y)` or of dicts. An iterable of batches of the same (a `DataLoader`, a
            list); a list holds batches if its targets have one dimension more than those of single items.
            Dicts hold an input under one of `INPUTS` and a target under one of `TARGETS`. Token ids without labels are
            their own labels. Labels of tokens are shifted to the next token here. One dict of columns `[n, ...]`, as a
            tokenizer returns, is a data set of `n` items.
        where: Name of the argument, for messages.

    Returns:
        Tensors and items.

    Raises:
        SpecError: The data set is empty, an item has no input or no target, or the items' shapes differ.
    """
    if (
        isinstance(source, tuple | list)
        and len(source) == 2
        and all(isinstance(s, Tensor | np.ndarray) for s in source)
    ):
        return _collected(_tensor(source[0]), _tensor(source[1]), where)
    source = _items_of_columns(source, where) if isinstance(source, Mapping) else source
    if hasattr(source, "__getitem__") and hasattr(source, "__len__") and not _is_batches(source, where):
        pairs = [_pair(source[i], where, i) for i in range(len(source))]
        inputs, targets = (_join(torch.stack, [pair[side] for pair in pairs], where) for side in (0, 1))
        return Collected(inputs, targets, source)
    if isinstance(source, Iterable):
        batches = list(source)
        pairs = [_pair(batch, where, i) for i, batch in enumerate(batches)]
        inputs, targets = (_join(torch.cat, [pair[side] for pair in pairs], where) for side in (0, 1))
        rows: Any = [row for batch in batches if isinstance(batch, Mapping) for row in _rows(batch)]
        return Collected(inputs, targets, rows or TensorDataset(inputs, targets))
    raise SpecError(
        f"found {type(source).__name__}",
        where=where,
        allowed="a data set, a pair of tensors or arrays, or batches of (x, y)",
    )


class ItemInputs(Dataset[Any]):
    """The inputs of a data set's items, without their targets."""

    def __init__(self, items: Dataset[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Tensor:
        return _pair(self.items[index], "data", index)[0]


def collect_lazily(source: Any, *, where: str) -> Collected:
    """Read the targets of a map-style data set, and leave its inputs where they are.

    Args:
        source: A map-style data set of `(x, y)` or of dicts; each item is read once here, and kept no longer.
        where: What it is for, for messages.

    Returns:
        Targets and items; no inputs.

    Raises:
        SpecError: It is no map-style data set, or an item has no input or no target.
    """
    source = _items_of_columns(source, where) if isinstance(source, Mapping) else source
    if not hasattr(source, "__getitem__") or not hasattr(source, "__len__"):
        raise SpecError(
            f"found {type(source).__name__}",
            where=where,
            allowed="a map-style data set, with __getitem__ and __len__, where in_memory is False",
        )
    targets = _join(torch.stack, [_pair(source[i], where, i)[1] for i in range(len(source))], where)
    return Collected(None, targets, source)


def items_of(parts: Sequence[Collected]) -> ConcatDataset[Any]:
    """The items of all parts, with consecutive ids."""
    return ConcatDataset([part.items for part in parts])


def _tensor(values: Tensor | np.ndarray[Any, Any]) -> Tensor:
    """A tensor. NumPy's default type is float64, so float64 arrays become torch's default type."""
    if isinstance(values, Tensor):
        return values
    tensor = torch.as_tensor(values)
    return tensor.to(torch.get_default_dtype()) if tensor.dtype == torch.float64 else tensor


def _collected(inputs: Tensor, targets: Tensor, where: str) -> Collected:
    if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets):
        raise SpecError(
            f"inputs have shape {list(inputs.shape)} and targets {list(targets.shape)}",
            where=where,
            allowed="as many targets as inputs",
        )
    return Collected(inputs, targets, TensorDataset(inputs, targets))


def _is_batches(source: Any, where: str) -> bool:
    """Whether a list holds batches, not items: its targets are `[b, t]`, or `[b]` with inputs that are not tokens."""
    if not isinstance(source, list) or not source:
        return False
    inputs, targets = _pair(source[0], where, 0)
    aligned = inputs.ndim > 1 and targets.ndim > 0 and len(inputs) == len(targets)
    return targets.ndim == 2 or (aligned and targets.ndim == 1 and targets.shape != inputs.shape)


def _items_of_columns(columns: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The items of one dict of columns, in the user's own format."""
    if not any(name in columns for name in INPUTS):
        keys = ", ".join(map(str, list(columns)[:6]))
        remedy = "pass one of its values, such as data['train']" if columns else "give at least one item"
        allowed = f"columns such as {', '.join(INPUTS)}"
        raise SpecError(f"found a dict with the keys {keys}", where=where, allowed=allowed, remedy=remedy)
    tensors = {}
    for name, column in columns.items():
        try:
            tensors[name] = torch.as_tensor(column)
        except (TypeError, ValueError, RuntimeError):
            raise SpecError(
                f"column {name!r} is no array: its rows differ in length, or are no numbers",
                where=where,
                allowed="columns of one shape [n, ...]",
                remedy="pad the texts (padding=True, return_tensors='pt' of a tokenizer), or drop the column",
            ) from None
    if any(name in tensors and tensors[name].ndim < 2 for name in INPUTS):
        shape = next(list(tensors[name].shape) for name in INPUTS if name in tensors)
        finding = f"found one item, of shape {shape}"
        raise SpecError(finding, where=where, allowed="columns [n, ...]", remedy="put it into a list")
    lengths = {name: len(tensor) if tensor.ndim else 0 for name, tensor in tensors.items()}
    if len(set(lengths.values())) > 1:
        raise SpecError(f"columns have lengths {lengths}", where=where, allowed="columns of one length")
    return _rows(tensors)


def _rows(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The items of a batch in the user's own format, for the user's training: labels not shifted, masks kept."""
    count = min(len(value) for value in batch.values())
    return [{key: value[i] for key, value in batch.items()} for i in range(count)]


def _pair(item: Any, where: str, index: int) -> tuple[Tensor, Tensor]:
    if isinstance(item, Mapping):
        return _from_mapping(item, where, index)
    if isinstance(item, tuple | list) and len(item) == 2:
        return torch.as_tensor(item[0]), torch.as_tensor(item[1])
    raise SpecError(
        f"item {index} is a {type(item).__name__}", where=where, allowed="(x, y), or a dict with an input and a target"
    )


def _from_mapping(item: Mapping[str, Any], where: str, index: int) -> tuple[Tensor, Tensor]:
    name = next((n for n in INPUTS if n in item), None)
    label = next((n for n in TARGETS if n in item), None)
    if name is None:
        raise SpecError(f"item {index} has keys {sorted(item)}", where=where, allowed=f"one of {', '.join(INPUTS)}")
    inputs = torch.as_tensor(item[name])
    if name == "input_ids":
        return inputs, _next_tokens(inputs, item, label, where, index)
    if label is None:
        raise SpecError(f"item {index} has keys {sorted(item)}", where=where, allowed=f"one of {', '.join(TARGETS)}")
    return inputs, torch.as_tensor(item[label])


def _next_tokens(tokens: Tensor, item: Mapping[str, Any], label: str | None, where: str, index: int) -> Tensor:
    """Targets aligned with the logits: position t predicts token t + 1; padding and the last position have none."""
    labels = torch.as_tensor(item[label]) if label else tokens
    mask = torch.as_tensor(item.get("attention_mask", torch.ones_like(tokens))).bool()
    if labels.shape != tokens.shape:  # a class per sequence
        if not mask.all():
            raise SpecError(
                f"item {index} is padded, and models are called with input_ids only",
                where=where,
                allowed="sequences without padding, if each has one class",
                remedy="wrap the model so that it recognises padding by its token, and leave attention_mask out",
            )
        return labels
    if not mask[..., 0].all():
        raise SpecError(f"item {index} is padded on the left", where=where, allowed="padding on the right")
    decided = torch.where(mask, labels, IGNORE)
    return torch.cat([decided[..., 1:], torch.full_like(decided[..., :1], IGNORE)], dim=-1)


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
