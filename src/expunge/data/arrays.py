"""Your own arrays: an `.npz` file with `x`, `y` and, for the test set, `tx`, `ty`; optionally `groups`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from expunge.base.errors import SpecError
from expunge.core.contracts import Source
from expunge.core.copies import groups_of_copies, row_digests
from expunge.core.data import Data
from expunge.data._npz import read_npz

REQUIRED = ("x", "y", "tx", "ty")


@dataclass(frozen=True)
class Arrays(Source):
    """Arrays from a file: images or vectors as `x`, or tokens `[n, t]` with `y` `[n, t]`.

    Whole numbers `y` `[n]` are classes, and floating-point numbers are regression targets. For other targets, such as
    several labels or a mask per example, add an `[objective]` table.
    Without `groups`, exact copies form groups.
    """

    paths: ClassVar[tuple[str, ...]] = ("path",)

    path: str
    """The `.npz` file; a relative path starts at the spec file's folder."""
    labels: list[str] = field(default_factory=list)
    """Names of the labels; by default their numbers."""

    def __call__(self) -> Data:
        """Load the arrays. Training examples have ids from 0, in the file's order; test examples follow.

        Raises:
            SpecError: The file is missing, is not an `.npz` file of plain arrays, lacks an array, or has bad values.
        """
        arrays = self._read()
        x, y, n = _joined(arrays, "x", "tx"), _joined(arrays, "y", "ty"), len(arrays["x"])
        y = y.float() if y.is_floating_point() else y.long()
        if not torch.isfinite(y).all():
            raise SpecError(
                "a target is not finite, or too large for float32", where="data.y", allowed="finite numbers"
            )
        # Whole numbers with a target for each of them are tokens.
        tokens = not x.is_floating_point() and not y.is_floating_point() and y.ndim == 2 and x.shape == y.shape
        x = x.long() if tokens else x.float() / 255 if x.dtype == torch.uint8 else x.float()
        groups = _whole(torch.from_numpy(arrays["groups"]), "groups") if "groups" in arrays else None
        if groups is not None and groups.shape != (len(x),):
            raise SpecError(f"found shape {list(groups.shape)}", where="data.groups", allowed=f"[{len(x)}]")
        if groups is None:
            groups = groups_of_copies(row_digests(x))
        return Data(x, y, torch.arange(n), torch.arange(n, len(x)), tuple(self.labels), groups)

    def _read(self) -> dict[str, np.ndarray]:
        path = Path(self.path)
        arrays = read_npz(path, (*REQUIRED, "groups"), where="data.path")
        missing = [name for name in REQUIRED if name not in arrays]
        if missing:
            raise SpecError(
                f"{path} lacks the array {missing[0]!r}", where="data.path", allowed=", ".join((*REQUIRED, "groups"))
            )
        return {name: _numbers(array, name) for name, array in arrays.items()}


def _joined(arrays: dict[str, np.ndarray], train: str, test: str) -> torch.Tensor:
    a, b = arrays[train], arrays[test]
    if a.ndim != b.ndim or a.ndim == 0 or a.shape[1:] != b.shape[1:]:
        raise SpecError(
            f"{train} has shape {list(a.shape)} and {test} has shape {list(b.shape)}",
            where="data.path",
            allowed="arrays that differ in their first dimension only",
        )
    return torch.from_numpy(np.concatenate([a, b]))


def _numbers(array: np.ndarray, name: str) -> np.ndarray:
    """The array in this machine's byte order, in a number format that torch has."""
    if array.dtype.kind not in "buif":
        raise SpecError(f"{name} holds {array.dtype}", where=f"data.{name}", allowed="numbers")
    wide = array.dtype.kind == "f" and array.dtype.itemsize > 8
    return array.astype(np.float64 if wide else array.dtype.newbyteorder("="), copy=False)


def _whole(values: torch.Tensor, name: str) -> torch.Tensor:
    if values.is_floating_point():
        raise SpecError(f"{name} holds {values.dtype}", where=f"data.{name}", allowed="whole numbers")
    return values.long()
