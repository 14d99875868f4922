"""One pool of examples from the data sets of a case, in a form that the user's model takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.core.adapt import Conversion, conversion_for
from expunge.core.collect import Collected, ItemInputs, items_of
from expunge.core.copies import groups_of_copies, row_digests
from expunge.core.data import Batch, Data
from expunge.core.first_pass import copied, guarded
from expunge.core.items import padded
from expunge.core.lazy import LazyInputs
from expunge.core.objective import CLASSES, TOKENS, Objective, inferred
from expunge.core.texts import refuse_shifted, require_text_model
from expunge.numerics.real import is_continuous


def pooled(
    model: nn.Module, parts: Mapping[str, Collected], objective: Objective | None, workers: int
) -> tuple[Data, dict[str, Tensor]]:
    """All parts under consecutive ids, and the ids of each; inputs in a form that the model takes.

    Args:
        model: The user's model; copies of it run.
        parts: The collected data sets by name.
        objective: How outputs are judged; `None` to infer it.
        workers: Processes that read lazy inputs.

    Raises:
        SpecError: The parts do not fit each other or the model, or no objective can be inferred.
    """
    parts = _of_one_length(parts)
    inputs, digests = _inputs_of(list(parts.values()), workers)
    targets = _cat([part.targets for part in parts.values()], "targets")
    if objective is None and inferred(inputs, targets) is None and targets.shape[1:] == (1,):
        targets = targets.squeeze(1)  # a column of class indices
    ends = torch.tensor([len(part.targets) for part in parts.values()]).cumsum(0)
    ids = dict(zip(parts, torch.tensor_split(torch.arange(len(targets)), ends[:-1]), strict=True))
    train = torch.cat([ids["forget"], ids["retain"]])
    targets = targets if is_continuous(targets) else targets.long()
    chosen = objective or inferred(inputs, targets)
    if chosen is None:
        _refuse_one_hot(targets)
        chosen = Data(inputs, targets, train, ids["test"]).judged_by(None).objective  # it refuses, and says why
    if TOKENS in chosen.provides:
        for name, part in parts.items():
            refuse_shifted(part.inputs, part.targets, where=name)
        require_text_model(model, chosen, inputs, targets)
    first = torch.arange(min(2, len(targets)))
    batch = Batch(inputs[first], targets[first], first)
    conversion = conversion_for(model, batch, chosen)
    if conversion is not None:
        batch, inputs = batch._replace(inputs=conversion.apply(batch.inputs)), _converted(inputs, conversion)
    groups, labels = groups_of_copies(digests), _labels(model, batch, chosen)
    return Data(inputs, targets, train, ids["test"], labels, groups, objective=chosen), ids


def _of_one_length(parts: Mapping[str, Collected]) -> dict[str, Collected]:
    """The parts, texts padded on the right to the longest of all parts."""
    texts = [(part.inputs, part.targets) for part in parts.values() if part.inputs is not None]
    if len(texts) < len(parts):
        return dict(parts)
    named = zip(parts.items(), padded(texts), strict=True)
    return {name: replace(part, inputs=inputs, targets=targets) for (name, part), (inputs, targets) in named}


def _converted(inputs: Tensor | LazyInputs, conversion: Conversion) -> Tensor | LazyInputs:
    return replace(inputs, inputs_of=conversion.apply) if isinstance(inputs, LazyInputs) else conversion.apply(inputs)


def _inputs_of(parts: list[Collected], workers: int) -> tuple[Any, list[bytes]]:
    """The inputs of all parts, and a digest of those of each example."""
    whole = [part.inputs for part in parts if part.inputs is not None]
    if whole:
        inputs = _cat(whole, "inputs")
        return inputs, row_digests(inputs)
    lazy = LazyInputs(ItemInputs(items_of(parts)), workers=workers)
    return lazy, [digest for part in parts for digest in part.digests]


def _refuse_one_hot(targets: Tensor) -> None:
    """Refuse one-hot rows: they may be one class each, or several labels of which one is true."""
    if targets.ndim == 2 and bool(((targets == 0) | (targets == 1)).all() and (targets.sum(1) == 1).all()):
        raise SpecError(
            f"targets {list(targets.shape)} are one-hot",
            where="objective",
            allowed="class indices [n], or an objective",
            remedy='give targets.argmax(1) for one class per example, or objective="multilabel" for several labels',
        )


def _cat(tensors: list[Tensor], what: str) -> Tensor:
    shapes = {tuple(t.shape[1:]) for t in tensors}
    if len(shapes) > 1:
        raise SpecError(f"{what} have shapes {sorted(shapes)}", where="forget, retain, test", allowed="one shape")
    # Data stay on the CPU; batches follow the model.
    return torch.cat([tensor.cpu() for tensor in tensors])


def _labels(model: nn.Module, batch: Batch, objective: Objective) -> tuple[str, ...]:
    """Numbers as names of the classes or tokens, one per output of the model; empty for other objectives."""
    if not objective.provides & {CLASSES, TOKENS}:
        return ()
    if objective.outputs:
        return tuple(map(str, range(objective.outputs)))
    with torch.no_grad():
        logits = guarded(trial := copied(model), batch, lambda: objective.prediction(trial, batch))
    if logits.ndim < 2:
        raise SpecError(
            f"the model returns {list(logits.shape)}",
            where=f"model ({type(model).__name__})",
            allowed="logits [n, c] or [n, t, v], or an object with the attribute .logits",
            remedy="for any other model, pass objective=",
        )
    if CLASSES in objective.provides and logits.shape[-1] == 1:
        raise SpecError(
            "the model has one output, which decides between no classes",
            where=f"model ({type(model).__name__})",
            allowed="one logit per class",
            remedy='for yes or no, give targets [n, 1] and objective="multilabel"',
        )
    return tuple(str(label) for label in range(logits.shape[-1]))
