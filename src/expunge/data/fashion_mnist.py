"""Fashion-MNIST: 28 x 28 grey images of ten kinds of clothing (Xiao et al., 2017; MIT licence).

The package contains the first 10,000 training and 2,000 test images of the official split. `subset = "full"` reads the
official IDX files from `folder`, from the folder that the environment variable `EXPUNGE_FASHION_MNIST` names, or from
that of Debian's package `dataset-fashion-mnist`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch

from expunge.base.errors import MissingError, SpecError
from expunge.base.part import Count
from expunge.core.contracts import Source
from expunge.core.data import Data
from expunge.data._idx import read_idx

LABELS = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
EMBEDDED = Path(__file__).parent / "assets" / "fashion_mnist_12k.npz"
CSCORES = Path(__file__).parent / "assets" / "fashion_mnist_cscores.npz"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


@dataclass(frozen=True)
class FashionMNIST(Source):
    """Ten kinds of clothing, 28 x 28."""

    paths: ClassVar[tuple[str, ...]] = ("folder",)
    cite: ClassVar[str] = "xiao2017fashion"

    subset: Literal["embedded", "full"] = "embedded"
    """`embedded`: 10,000 + 2,000 images inside the package; `full`: the official 60,000 + 10,000."""
    train: Count | None = None
    """Use only this many training images, the first ones."""
    test: Count | None = None
    """Use only this many test images, the first ones."""
    folder: str | None = None
    """Folder of the four official files, for `full`."""

    def input_files(self) -> dict[str, dict[str, Path]]:
        """The official files, wherever they are; the embedded images belong to the package."""
        if self.subset == "embedded":
            return {}
        files = {f"{name}-ubyte.gz": self._folder() / f"{name}-ubyte.gz" for name in FILES}
        return {"folder": files}

    def __call__(self) -> Data:
        """Load the images, `[n, 1, 28, 28]` in [0, 1]. Training images have ids from 0; test images follow.

        Raises:
            MissingError: The full data set is not on this machine.
            SpecError: The data set has fewer images than `train` or `test`.
        """
        x, y, tx, ty = self._arrays()
        x, y = x[: _at_most(self.train, len(x), "train")], y[: self.train]
        tx, ty = tx[: _at_most(self.test, len(tx), "test")], ty[: self.test]
        images = torch.from_numpy(np.concatenate([x, tx])).unsqueeze(1).float().div_(255)
        targets = torch.from_numpy(np.concatenate([y, ty]).astype(np.int64))
        n = len(x)
        return Data(
            images, targets, torch.arange(n), torch.arange(n, len(images)), LABELS, cscore=self._cscore(n, len(images))
        )

    def _cscore(self, n: int, total: int) -> torch.Tensor | None:
        if self.subset != "embedded" or not CSCORES.is_file():
            return None
        with np.load(CSCORES) as counts:
            shipped = torch.from_numpy(counts["right"] / counts["held_out"])
        scores = torch.full((total,), torch.nan, dtype=torch.float64)
        scores[:n] = shipped[:n]
        return scores

    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        if self.subset == "embedded":
            with np.load(EMBEDDED) as packed:
                return packed["x"], packed["y"], packed["tx"], packed["ty"]
        x, y, tx, ty = (read_idx(self._folder() / f"{name}-ubyte.gz") for name in FILES)
        return x, y, tx, ty

    def _folder(self) -> Path:
        given = self.folder or os.environ.get("EXPUNGE_FASHION_MNIST")
        folder = Path(given) if given else DEBIAN
        missing = [name for name in FILES if not (folder / f"{name}-ubyte.gz").is_file()]
        if missing:
            raise MissingError(
                f"{folder} lacks {missing[0]}-ubyte.gz",
                where="data.folder",
                allowed="a folder with the four official files",
                remedy="run 'apt-get install dataset-fashion-mnist', or name your folder with data.folder",
            )
        return folder


def _at_most(wanted: int | None, available: int, name: str) -> int:
    if wanted is not None and wanted > available:
        raise SpecError(f"found {wanted} images", where=f"data.{name}", allowed=f"1 to {available}")
    return available if wanted is None else wanted
