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

from expunge.base.errors import SpecError
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
    try:
        if path.suffix == ".npy":
            ids = np.load(path, allow_pickle=False).tolist()
        elif path.suffix == ".json":
            ids = json.loads(path.read_text(encoding="utf-8"))
        else:
            ids = [int(line) for line in path.read_text(encoding="utf-8").split()]
    except OSError as error:
        finding = f"cannot read {path} ({error.strerror or error})"
        raise SpecError(finding, where=where, remedy="check the path") from None
    except (ValueError, EOFError) as error:
        raise SpecError(f"{path}: {error}", where=where, allowed="whole numbers") from None
    if not isinstance(ids, list) or any(type(item) is not int for item in ids):
        raise SpecError(f"{path} holds more than a list of whole numbers", where=where, allowed="a list of ids")
    try:
        return torch.tensor(ids, dtype=torch.int64)
    except (RuntimeError, ValueError, OverflowError):
        big = max(ids, key=abs)
        raise SpecError(f"id {big} is out of range", where=where, allowed="ids of training examples") from None
