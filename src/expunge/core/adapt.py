"""Inputs in a form that the model does not take and that has only one meaning: bytes, booleans, channels last."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.core.data import Batch
from expunge.core.first_pass import copied, described, guarded
from expunge.core.objective import Objective
from expunge.reporting.progress import Progress

CHANNELS = (1, 3, 4)
"""Channels of an image, by which its layout is recognised."""


class Conversion(NamedTuple):
    """A change of inputs, and what it does, for messages."""

    apply: Callable[[Tensor], Tensor]
    what: str


def conversion_for(model: nn.Module, batch: Batch, objective: Objective) -> Conversion | None:
    """The first conversion after which the model takes the inputs; `None` if it takes them as they are.

    Args:
        model: The user's model; a copy of it runs.
        batch: Some examples.
        objective: Computes the predictions.

    Raises:
        SpecError: The model takes none of them.
    """
    trial = copied(model)

    def run(inputs: Tensor) -> None:
        changed = batch._replace(inputs=inputs)
        with torch.no_grad():
            guarded(trial, changed, lambda: objective.prediction(trial, changed))

    try:
        run(batch.inputs)
    except SpecError as error:
        for conversion in _candidates(batch.inputs):
            try:
                run(conversion.apply(batch.inputs))
            except SpecError:
                continue
            Progress().say(f"inputs {described(batch.inputs)} do not fit the model as they are: {conversion.what}")
            return conversion
        raise error
    return None


def _candidates(inputs: Tensor) -> Iterator[Conversion]:
    """Conversions to try, from the smallest change to the largest."""
    types: list[Conversion] = []
    if inputs.dtype == torch.uint8:
        types.append(Conversion(lambda x: x.to(torch.get_default_dtype()) / 255, "bytes are divided by 255"))
    if inputs.dtype == torch.bool:
        types.append(Conversion(lambda x: x.to(torch.get_default_dtype()), "booleans become the numbers 0 and 1"))
    layouts: list[Conversion] = []
    if inputs.ndim == 4 and inputs.shape[3] in CHANNELS and inputs.shape[1] not in CHANNELS:
        layouts.append(
            Conversion(lambda x: x.movedim(3, 1).contiguous(), "channels move from the last place to the first")
        )
    if inputs.ndim == 3:
        layouts.append(Conversion(lambda x: x.unsqueeze(1), "images get a dimension for their one channel"))
    yield from types
    yield from layouts
    for first in types:
        for then in layouts:
            yield Conversion(
                lambda x, first=first, then=then: then.apply(first.apply(x)),  # type: ignore[misc]
                f"{first.what}, and {then.what}",
            )
