"""Your own arrays: an `.npz` file with `x`, `y` and, for the test set, `tx`, `ty`; optionally `groups`."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from expunge.base.errors import SpecError
from expunge.core.contracts import Source
from expunge.core.data import IGNORE, Data

REQUIRED = ("x", "y", "tx", "ty")


@dataclass(frozen=True)
class Arrays(Source):
    """Arrays from a file; floating-point `x` for classification, whole numbers `[n, t]` with `y` `[n, t]` for text."""

    paths: ClassVar[tuple[str, ...]] = ("path",)

    path: str
    """The `.npz` file; a relative path counts from the spec file."""
    labels: list[str] = field(default_factory=list)
    """What the classes mean; by default their numbers, as many as the largest label needs."""

    def __call__(self) -> Data:
        """Training examples have ids from 0 in the file's order, test examples follow.

        Raises:
            SpecError: The file is missing, is no `.npz` of plain arrays, lacks an array, or holds bad values.
        """
        arrays = self._read()
        x, y = (torch.from_numpy(np.concatenate([arrays[a], arrays[b]])) for a, b in (("x", "tx"), ("y", "ty")))
        kind = "tokens" if y.ndim == 2 else "classes"
        if x.dtype == torch.uint8 and kind == "classes":
            x = x.float() / 255
        x, y = x.float() if x.is_floating_point() else x.long(), self._whole(y)
        labels = tuple(self.labels) or tuple(str(i) for i in range(int(y[y != IGNORE].max()) + 1))
        n = len(arrays["x"])
        groups = torch.from_numpy(arrays["groups"]).long() if "groups" in arrays else None
        return Data(x, y, torch.arange(n), torch.arange(n, len(x)), labels, kind, groups)  # type: ignore[arg-type]

    def _read(self) -> dict[str, np.ndarray]:
        path = Path(self.path)
        if not path.is_file():
            raise SpecError(f"there is no file {path}", where="data.path", remedy="check the path")
        try:
            # Pickled objects inside would run code of their own: never allowed.
            with np.load(path, allow_pickle=False) as packed:
                arrays = {name: packed[name] for name in packed.files}
        except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
            raise SpecError(
                f"{path} cannot be read ({error})", where="data.path", allowed="an .npz file of plain arrays"
            ) from None
        missing = [name for name in REQUIRED if name not in arrays]
        if missing:
            raise SpecError(
                f"{path} lacks the array {missing[0]!r}", where="data.path", allowed=", ".join((*REQUIRED, "groups"))
            )
        return arrays

    @staticmethod
    def _whole(y: torch.Tensor) -> torch.Tensor:
        if y.is_floating_point():
            raise SpecError(f"labels are {y.dtype}", where="data.y", allowed="whole numbers")
        return y.long()
