"""Shared by the tasks: the retain set, the discovered part of a corruption, and the class of a name."""

from __future__ import annotations

import torch
from torch import Tensor

from expunge.base.errors import SpecError
from expunge.core.data import Data
from expunge.core.problem import Problem


def without(data: Data, forget: Tensor) -> Tensor:
    """Training ids that are not in the forget set."""
    return data.train[~torch.isin(data.train, forget)]


def require_fewer(count: int, data: Data) -> None:
    """Refuse to forget all training examples, or more.

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
    if not data.has_classes:
        raise SpecError(
            f"the objective is {type(data.objective).__name__}", where=f"forget ({task})", allowed="data with classes"
        )


def class_index(label: int | str, data: Data, where: str) -> int:
    """The number of a class that is given by number or by name.

    Raises:
        SpecError: There is no such class.
    """
    if isinstance(label, str) and label in data.labels:
        return data.labels.index(label)
    if isinstance(label, int) and label < len(data.labels):
        return label
    numbered = ", ".join(f"{i} {name}" for i, name in enumerate(data.labels))
    raise SpecError(f"there is no class {label!r}", where=where, allowed=numbered)


def corrupted_problem(
    clean: Data,
    wrong: Data,
    corrupted: Tensor,
    discovery: float,
    *,
    test: Tensor | None = None,
    holdout: Tensor | None = None,
) -> Problem:
    """The problem of a planted corruption, of which only a share was discovered (2505.17730).

    Args:
        clean: The data before corruption; its targets are the true ones.
        wrong: The data that the original is trained on.
        corrupted: Ids of all corrupted examples, in random order, so that the first ones are a uniform subset.
        discovery: Share of them that is discovered and forms the forget set, at least one; the rest stays retained.
        test: Ids that utility is measured on; by default those of the data.
        holdout: Ids of unseen examples that resemble the corrupted ones.

    Returns:
        The problem, whose references train without all of the corruption.
    """
    forget = corrupted[: max(1, round(discovery * len(corrupted)))]
    return Problem(
        wrong,
        forget,
        without(wrong, forget),
        wrong.test if test is None else test,
        holdout=corrupted[:0] if holdout is None else holdout,
        corrupted=corrupted,
        true_targets=clean.targets,
    )
