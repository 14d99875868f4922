"""The contract of what verdicts subtract and split: an objective's baselines, and its utility by label."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from expunge.core.data import Batch
from expunge.core.objective import Objective
from expunge.testing._error import Fail

CLOSE = 1e-5


def baselines_and_labels(objective: Objective, model: nn.Module, batch: Batch, fail: Fail) -> dict[str, Tensor]:
    """Check both on a batch, without gradients.

    Baselines belong to metrics that the objective has, are one finite number per example, and depend neither on how
    the unseen examples are batched nor on the other examples. Utility by label is a finite value for each pair of an
    example of the batch and a label.

    Returns:
        The baselines by metric, and the parts of the utility by label.
    """
    with torch.no_grad():
        values = _baselines(objective, model, batch, fail)
        return {f"baseline of {name}": value for name, value in values.items()} | _by_label(
            objective, model, batch, fail
        )


def _baselines(objective: Objective, model: nn.Module, batch: Batch, fail: Fail) -> dict[str, Tensor]:
    whole = objective.answers(model, iter([batch]))
    values = objective.baseline(model, batch, whole)
    names = {metric.name for metric in objective.metrics}
    if not isinstance(values, dict) or not set(values) <= names:
        raise fail("baselines of metrics", f"`baseline` names {list(values)}", f"name some of {sorted(names)}")
    for name, value in values.items():
        _check_row(f"the baseline of {name}", value, batch.size, fail)
    parts = objective.baseline(model, batch, objective.answers(model, iter(batch.chunk(2))))
    alone = objective.baseline(model, Batch(*(part[:1] for part in batch)), whole)
    for name, value in values.items():
        if not _close(value, parts.get(name)):
            raise fail("baselines", f"that of {name} depends on the batches of `answers`", "count over all batches")
        if not _close(value[:1], alone.get(name)):
            raise fail("examples are judged alone", f"the baseline of {name} depends on the batch", "use `answers`")
    return values


def _by_label(objective: Objective, model: nn.Module, batch: Batch, fail: Fail) -> dict[str, Tensor]:
    parts = objective.by_label(model, batch)
    if parts is None:
        return {}
    count = len(parts.values)
    for name, values in parts._asdict().items():
        _check_row(f"by_label's {name}", values, count, fail)
    rows, labels = parts.example.tolist(), parts.label.tolist()
    whole = not parts.example.is_floating_point() and not parts.label.is_floating_point()
    if not whole or not set(rows) <= set(range(batch.size)) or min(labels, default=0) < 0:
        raise fail("utility by label", "an example or a label is not one of the batch", "return rows and label indices")
    if len(set(zip(rows, labels, strict=True))) < count:
        raise fail("utility by label", "an example has a label twice", "average over decisions with the same label")
    return {f"by_label's {name}": values for name, values in parts._asdict().items()}


def _check_row(name: str, values: Any, size: int, fail: Fail) -> None:
    if not isinstance(values, Tensor) or values.shape != (size,):
        shape = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise fail("one value per example", f"{name} is {shape}", f"return a tensor [{size}]")
    if not values.isfinite().all():
        raise fail("finite", f"{name} has a value that is not finite", "return 0 where there is nothing to count")


def _close(value: Tensor, other: Tensor | None) -> bool:
    return other is not None and torch.allclose(value.double(), other.double(), rtol=CLOSE, atol=CLOSE)
