"""Checks of targets, shared by several objectives."""

from __future__ import annotations

import torch
from torch import Tensor

from expunge.base.errors import SpecError

MOST_LABELS = 2**20
"""Number of labels that is allowed for data of any size."""


def require_whole(targets: Tensor, what: str) -> None:
    """Refuse targets that are not whole numbers.

    Raises:
        SpecError: The targets are floating-point or complex.
    """
    if targets.is_floating_point() or targets.is_complex():
        raise SpecError(f"targets are {targets.dtype}", where="data.targets", allowed=f"{what}, as whole numbers")


def require_labels(targets: Tensor, labels: int, ignore: int | None = None) -> None:
    """Refuse targets outside the labels.

    Args:
        targets: Whole numbers; the first dimension is that of examples.
        labels: Number of labels.
        ignore: Target that is not a decision.

    Raises:
        SpecError: A target is outside the labels; the message names the first such example.
    """
    outside = (targets < 0) | (targets >= labels)
    if ignore is not None:
        outside &= targets != ignore
    if outside.any():
        place = outside.nonzero()[0]
        raise SpecError(
            f"label {int(targets[tuple(place)])} (example {int(place[0])}) is outside the classes",
            where="data.targets",
            allowed=f"0 to {labels - 1}",
        )


def require_decided(targets: Tensor, ignore: int) -> None:
    """Refuse examples in which every target is ignored: without decisions, they would count as known.

    Raises:
        SpecError: There are such examples; the message counts them and names the first.
    """
    idle = (targets == ignore).flatten(1).all(1).nonzero().flatten()
    if len(idle):
        raise SpecError(
            f"{len(idle)} examples have no decision, the first has id {int(idle[0])}",
            where="data.targets",
            allowed=f"at least one target other than {ignore} per example",
            remedy="drop these examples, or do not ignore all of their targets",
        )


def labels_up_to(targets: Tensor, ignore: int | None = None) -> tuple[str, ...]:
    """The numbers from 0 to the largest target, as label names.

    Raises:
        SpecError: The largest target is far above the number of targets; a model would need as many outputs.
    """
    decided = targets if ignore is None else targets[targets != ignore]
    count, most = int(decided.max()) + 1 if decided.numel() else 0, max(MOST_LABELS, decided.numel())
    if count > most:
        remedy = "number the classes from 0"
        raise SpecError(
            f"the largest label is {count - 1}", where="data.targets", allowed=f"0 to {most - 1}", remedy=remedy
        )
    return tuple(str(label) for label in range(count))


def drawn_wrong(targets: Tensor, labels: int, generator: torch.Generator) -> Tensor:
    """Each target replaced by a uniformly drawn wrong label."""
    return (targets + torch.randint(1, labels, targets.shape, generator=generator)) % labels
