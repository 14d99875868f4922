"""Forget the examples that a file of yours names: JSON, `.npy`, or text with one id a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from expunge.base.errors import ExpungeError, SpecError
from expunge.base.reading import read_given
from expunge.core.contracts import Task
from expunge.core.data import Data, check_ids
from expunge.core.problem import Problem
from expunge.tasks._split import without


@dataclass(frozen=True)
class Indices(Task):
    """Ids from a file; each must be the id of a training example."""

    paths: ClassVar[tuple[str, ...]] = ("path", "retain")

    path: str
    """The file with the ids to forget; a relative path counts from the spec file."""
    retain: str | None = None
    """Optionally a file with the ids to retain; by default all other training examples."""

    def __call__(self, data: Data, seed: int, measured: Mapping[str, Tensor]) -> Problem:
        """The problem.

        Raises:
            SpecError: The file cannot be read; or its ids are out of range, occur twice, are none, or are all ids.
        """
        forget = _training_ids(self.path, data, "forget.path")
        retain = without(data, forget) if self.retain is None else _training_ids(self.retain, data, "forget.retain")
        return Problem(data, forget, retain, data.test)


def _training_ids(path: str, data: Data, where: str) -> Tensor:
    ids = _read(Path(path), where)
    check_ids(ids, len(data), where=where)
    foreign = ids[~torch.isin(ids, data.train)]
    if len(foreign):
        raise SpecError(f"id {int(foreign[0])} is no training example", where=where, allowed="ids of training examples")
    return ids


def _read(path: Path, where: str) -> Tensor:
    content = read_given(path, where=where)
    try:
        if path.suffix == ".npy":
            ids = _column(path)
        elif path.suffix == ".json":
            ids = json.loads(content)
        else:
            ids = [int(line) for line in content.decode().split()]
    except ExpungeError:
        raise
    except Exception as error:  # numpy's reader raises many kinds of errors for damaged bytes
        reason = str(error) or type(error).__name__
        raise SpecError(f"{path}: {reason}", where=where, allowed="whole numbers") from None
    if not isinstance(ids, list) or any(type(item) is not int for item in ids):
        raise SpecError(f"{path} holds more than a list of whole numbers", where=where, allowed="a list of ids")
    try:
        return torch.tensor(ids, dtype=torch.int64)
    except (RuntimeError, ValueError, OverflowError):
        digits = max(abs(number).bit_length() for number in ids)
        finding = f"an id has {digits} bits, which is out of range"
        raise SpecError(finding, where=where, allowed="ids of training examples") from None


def _column(path: Path) -> list[int]:
    """The numbers in an `.npy` file, mapped, so that a header which promises too much reserves no memory."""
    ids: list[int] = np.load(path, mmap_mode="r", allow_pickle=False).tolist()
    return ids
