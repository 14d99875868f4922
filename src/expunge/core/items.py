"""One item of the user's data set, or one batch, as two tensors: the inputs and the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from expunge.base.errors import SpecError
from expunge.core.objective import IGNORE

INPUTS = ("pixel_values", "input_ids", "x", "inputs", "image", "img")
TARGETS = ("labels", "label", "y", "targets", "target", "class")
NUMBER_CLASSES = (
    "replace names by numbers, in the order of the model's outputs: [names.index(label) for label in labels]"
)
PICTURES = "PIL images became tensors [channels, height, width] with values from 0 to 1, as by torchvision's ToTensor"


def pair(item: Any, where: str, index: int) -> tuple[Tensor, Tensor]:
    """Inputs and target of an item `(x, y)` or of a dict; further fields of a tuple are left out.

    Args:
        item: An item or a batch.
        where: Name of the data set, for messages.
        index: Number of the item, for messages.

    Raises:
        SpecError: The item has no input or no target, or they are no numbers.
    """
    if isinstance(item, Mapping):
        return _from_mapping(item, where, index)
    if isinstance(item, tuple | list) and len(item) >= 2:
        if len(item) > 2 and not _spare(item):
            raise SpecError(
                f"item {index} has {len(item)} fields, and it is not clear which of them is the target",
                where=where,
                allowed="(x, y), or (x, label, ...), whose further fields are left out",
                remedy="give pairs; a model with several inputs takes them from one tensor",
            )
        return tensor_of(item[0], "input", where, index), tensor_of(item[1], "target", where, index)
    raise SpecError(
        f"item {index} is a {type(item).__name__}", where=where, allowed="(x, y), or a dict with an input and a target"
    )


def _spare(item: Any) -> bool:
    """Whether the third and later fields are no targets: the second one is a label, or they are no numbers."""
    if not any(isinstance(field, Tensor | np.ndarray | Number | list) for field in item[2:]):
        return True
    target: Any = item[1]
    if not isinstance(target, Tensor | np.ndarray):
        return isinstance(target, Number)
    # One label, or, in a batch, one label per example.
    return target.ndim == 0 or (target.ndim == 1 and len(target) == len(item[0]))


def notes(item: Any) -> list[str]:
    """What the user should know about how items such as this one are read."""
    several = isinstance(item, tuple | list) and len(item) > 2
    fields = f"items have {len(item)} fields: the first is the input, the second the target" if several else ""
    parts = item.values() if isinstance(item, Mapping) else item if isinstance(item, tuple | list) else ()
    return [note for note in (fields, PICTURES if any(map(_is_picture, parts)) else "") if note]


def tensor_of(value: Any, what: str, where: str, index: int | None = None) -> Tensor:
    """A value as a tensor. A PIL image gives `[channels, h, w]` from 0 to 1; as a target class indices `[h, w]`.

    Args:
        value: A tensor, an array, a number, a PIL image, or nested lists of numbers.
        what: `input` or `target`, for messages.
        where: Name of the data set, for messages.
        index: Number of the item; `None` if the value belongs to all items.

    Raises:
        SpecError: The value is none of these.
    """
    of_item = "" if index is None else f" of item {index}"
    if isinstance(value, Tensor):
        return value
    if hasattr(value, "to_numpy"):
        raise frame_error(value, where)
    kind = type(value).__name__
    try:
        if _is_picture(value) and what == "target":
            return torch.as_tensor(_mask(value))
        array = _picture(value) if _is_picture(value) else np.asarray(value)
        if array.dtype.kind in "buifc":
            return torch.as_tensor(array if isinstance(value, np.ndarray) or _is_picture(value) else value)
        kind = "text" if array.dtype.kind in "US" else f"{kind} of {array.dtype}"
    except (TypeError, ValueError, RuntimeError) as error:
        kind = f"{kind} ({str(error).splitlines()[0]})"
    if kind == "text" and what == "target":
        raise SpecError(f"the target{of_item} is text", where=where, allowed="numbers", remedy=NUMBER_CLASSES)
    raise SpecError(
        f"the {what}{of_item} is {kind}",
        where=where,
        allowed="a tensor, an array, a number or a PIL image",
        remedy="convert it in the data set",
    )


def frame_error(value: Any, where: str) -> SpecError:
    """The error for a data frame or series."""
    return SpecError(
        f"found a {type(value).__name__}",
        where=where,
        allowed="a data set, or a pair of tensors or arrays (x, y)",
        remedy='give numbers: (frame[columns].to_numpy("float32"), frame["label"].to_numpy())',
    )


def _is_picture(value: Any) -> bool:
    return hasattr(value, "getbands") and hasattr(value, "convert")


def _picture(image: Any) -> np.ndarray[Any, Any]:
    """Values from 0 to 1 as `[channels, height, width]`; palettes become RGB, black and white becomes grey."""
    plain = image.convert({"P": "RGB", "1": "L"}.get(image.mode, image.mode))
    array: np.ndarray[Any, Any] = np.asarray(plain)
    if array.dtype != np.uint8:
        raise ValueError(f"of mode {image.mode}, whose scale is not known")
    return np.moveaxis(np.atleast_3d(array), 2, 0).astype(np.float32) / 255


def _mask(image: Any) -> np.ndarray[Any, Any]:
    """The class index of every pixel, `[height, width]`; of a palette the numbers, not the colours."""
    array: np.ndarray[Any, Any] = np.asarray(image)
    if array.ndim != 2:
        raise ValueError(f"of mode {image.mode}, which holds colours and no class indices")
    return array.astype(np.int64)


def _from_mapping(item: Mapping[str, Any], where: str, index: int) -> tuple[Tensor, Tensor]:
    name = next((n for n in INPUTS if n in item), None)
    label = next((n for n in TARGETS if n in item), None)
    if name is None:
        raise SpecError(f"item {index} has keys {sorted(item)}", where=where, allowed=f"one of {', '.join(INPUTS)}")
    inputs = tensor_of(item[name], "input", where, index)
    if name == "input_ids":
        return _text(inputs, item, label, where, index)
    if label is None:
        raise SpecError(f"item {index} has keys {sorted(item)}", where=where, allowed=f"one of {', '.join(TARGETS)}")
    return inputs, tensor_of(item[label], "target", where, index)


def _text(tokens: Tensor, item: Mapping[str, Any], label: str | None, where: str, index: int) -> tuple[Tensor, Tensor]:
    """Tokens, and targets aligned with the logits: position t predicts token t + 1; padding and the last have none.

    Padding becomes token 0, by which copies that were padded to different lengths are recognised.
    """
    labels = tensor_of(item[label], "target", where, index) if label else tokens
    mask = torch.as_tensor(item.get("attention_mask", torch.ones_like(tokens))).bool()
    if labels.shape != tokens.shape:  # a class per sequence
        if not mask.all():
            raise SpecError(
                f"item {index} is padded, and models are called with input_ids only",
                where=where,
                allowed="sequences without padding, if each has one class",
                remedy="wrap the model so that it recognises padding by its token, and leave attention_mask out",
            )
        return tokens, labels
    if not mask[..., 0].all():
        raise SpecError(f"item {index} is padded on the left", where=where, allowed="padding on the right")
    decided = torch.where(mask, labels, IGNORE)
    targets = torch.cat([decided[..., 1:], torch.full_like(decided[..., :1], IGNORE)], dim=-1)
    return torch.where(mask, tokens, 0), targets


def padded(texts: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Inputs and targets of texts `[..., t]`, padded on the right to one length: by token 0, and by no decision.

    Anything else is returned as it is, such as images and masks: inputs that are not int64, or shapes that differ.
    """
    tokens = all(i.shape == t.shape and i.ndim > 0 and i.dtype == torch.int64 for i, t in texts)
    width = max((i.shape[-1] for i, _ in texts), default=0) if tokens else 0
    if not tokens or all(i.shape[-1] == width for i, _ in texts):
        return list(texts)
    missing = [(0, width - i.shape[-1]) for i, _ in texts]
    return [(F.pad(i, m), F.pad(t, m, value=IGNORE)) for (i, t), m in zip(texts, missing, strict=True)]


def items_of_columns(columns: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The items of one dict of columns `[n, ...]`, in the user's own format.

    Raises:
        SpecError: It has no inputs, or its columns are no arrays of one length.
    """
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
    return [{name: tensor[i] for name, tensor in tensors.items()} for i in range(next(iter(lengths.values())))]
