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
from expunge.core.data import Data, check_ids, ranges
from expunge.core.problem import Problem
from expunge.tasks._split import without


@dataclass(frozen=True)
class Indices(Task):
    """Ids from a file; each must be the id of a training example."""

    paths: ClassVar[tuple[str, ...]] = ("path", "retain", "holdout")

    path: str
    """The file with the ids to forget; a relative path counts from the spec file."""
    retain: str | None = None
    """Optionally a file with the ids to retain; by default all other training examples."""

    holdout: str | None = None
    """Optionally a file with ids of test examples that resemble those to forget, such as other people's. Where there
    are no references, they replace them; they do not count for utility."""

    def __call__(self, data: Data, seed: int, measured: Mapping[str, Tensor]) -> Problem:
        """The problem.

        Raises:
            SpecError: The file cannot be read; or its ids are out of range, occur twice, are none, or are all ids.
        """
        forget = _ids_of("training", data.train, self.path, data, "forget.path")
        retain = without(data, forget)
        if self.retain is not None:
            retain = _ids_of("training", data.train, self.retain, data, "forget.retain")
        if self.holdout is None:
            return Problem(data, forget, retain, data.test)
        holdout = _ids_of("test", data.test, self.holdout, data, "forget.holdout")
        return Problem(data, forget, retain, data.test[~torch.isin(data.test, holdout)], holdout=holdout)


def _ids_of(what: str, allowed: Tensor, path: str, data: Data, where: str) -> Tensor:
    """The ids in a file, each of which is a training example or a test example."""
    ids = _read(Path(path), where)
    check_ids(ids, len(data), where=where, among=allowed)
    foreign = ids[~torch.isin(ids, allowed)]
    if len(foreign):
        raise SpecError(
            f"id {int(foreign[0])} is no {what} example",
            where=where,
            allowed=f"ids of {what} examples: {ranges(allowed)}",
        )
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
