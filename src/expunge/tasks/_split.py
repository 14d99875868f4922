"""The step that every construction ends with: the training ids without the forget set are retained."""

from __future__ import annotations

import torch
from torch import Tensor

from expunge.base.errors import SpecError
from expunge.core.data import Data


def without(data: Data, forget: Tensor) -> Tensor:
    """Training ids that are not to be forgotten."""
    return data.train[~torch.isin(data.train, forget)]


def require_fewer(count: int, data: Data) -> None:
    """Refuse to take as many examples as there are to train on, or more.

    Raises:
        SpecError: Nothing would be left to train on.
    """
    if count >= len(data.train):
        raise SpecError(
            f"{count} examples of {len(data.train)}", where="forget.count", allowed=f"1 to {len(data.train) - 1}"
        )


def require_classes(data: Data, task: str) -> None:
    """Refuse data without classes.

    Raises:
        SpecError: The data are tokens.
    """
    if data.kind != "classes":
        raise SpecError("the data are tokens", where=f"forget ({task})", allowed="data with classes")
