"""One forward pass of any model: move the inputs to its device and type, and choose the output with the predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.core.device import Precision, forward_pass, precision
from expunge.core.example_ids import example_ids
from expunge.core.modules import first_parameter
from expunge.core.norms import statistics_for
from expunge.core.once import kept_output
from expunge.core.recompute import in_micro_batches
from expunge.numerics.norms import sound_norms
from expunge.numerics.precision import wide

if TYPE_CHECKING:
    from expunge.core.data import Batch


def output_of(model: nn.Module, batch: Batch, output: str | int | None = None) -> Tensor:
    """Run the model on a batch.

    Args:
        model: Called with the inputs: one tensor, several in a tuple, or by name in a mapping.
        batch: The examples; their inputs are moved to the model's device and floating-point type.
        output: Which output to take: a key or attribute, or a position in a tuple. By default the output itself if it
            is a tensor, otherwise its `logits`.

    Returns:
        A tensor in float32 or wider, with gradients if enabled.

    Raises:
        SpecError: The model returns several outputs and `output` does not say which one to take; or the model has batch
            norm in training mode, and the batch runs in micro-batches or has one value per channel.
    """
    # The precision is read here: a backward pass may repeat the forward pass in another thread, without the setting.
    run = partial(_pass, model, output, precision())
    return kept_output(model, batch.ids, output, partial(_run, run, model, batch))


def _run(run: Callable[[Batch], Tensor], model: nn.Module, batch: Batch) -> Tensor:
    with statistics_for(model, batch.ids):
        return in_micro_batches(run, model, batch)


def _pass(model: nn.Module, output: str | int | None, precision: Precision, batch: Batch) -> Tensor:
    place = first_parameter(model)
    inputs = moved(batch.inputs, place)
    with forward_pass(place.device, precision), example_ids(batch.ids), sound_norms(), _several_values(model):
        if isinstance(inputs, Tensor):
            returned = model(inputs)
        elif isinstance(inputs, Mapping):
            returned = model(**inputs)
        else:
            returned = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    chosen = chosen_output(returned, output, model)
    # Losses in bfloat16 would have only two or three digits.
    return wide(chosen)


@contextmanager
def _several_values(model: nn.Module) -> Iterator[None]:
    """Explain PyTorch's error about a batch that has no variance, of one example without further dimensions."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise SpecError(
            "a batch of one example reached batch norm in training mode, which needs two",
            where=f"model ({type(model).__name__})",
            remedy="set batch_size to 2 or more, add examples, or use a model with group norm or layer norm",
        ) from error


def moved(inputs: Any, place: Tensor) -> Any:
    """Inputs on the device of `place`, real and complex ones in its precision; tuples and mappings keep their form."""
    if isinstance(inputs, Mapping):
        return {name: moved(value, place) for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(moved(value, place) for value in inputs)
    if inputs.device != place.device:
        inputs = inputs.to(place.device, non_blocking=inputs.device.type == "cpu" and inputs.is_pinned())
    if inputs.is_complex():
        return inputs.to(torch.promote_types(place.dtype, torch.complex64))
    return inputs.to(place.dtype) if inputs.is_floating_point() else inputs


def chosen_output(returned: Any, output: str | int | None, model: nn.Module) -> Tensor:
    """The one of a model's outputs that holds its predictions, a tensor."""
    if output is None and isinstance(returned, Tensor):
        return returned
    if output is None:
        # Hugging Face models return an object with the attribute `logits`, which is also a mapping.
        output = "logits" if hasattr(returned, "logits") or _has_key(returned, "logits") else None
    if isinstance(output, int) and isinstance(returned, tuple | list) and -len(returned) <= output < len(returned):
        returned = returned[output]
    elif isinstance(output, str) and hasattr(returned, output):
        returned = getattr(returned, output)
    elif isinstance(output, str) and _has_key(returned, output):
        returned = returned[output]
    elif output is not None:
        raise _unclear(returned, model, f"no output {output!r}")
    if not isinstance(returned, Tensor):
        raise _unclear(returned, model, "several outputs")
    return returned


def _has_key(returned: Any, key: str) -> bool:
    return isinstance(returned, Mapping) and key in returned


def _unclear(returned: Any, model: nn.Module, finding: str) -> SpecError:
    kind = type(returned).__name__
    if isinstance(returned, Mapping):
        outputs = f"a {kind} with keys {', '.join(map(repr, returned))}"
    elif isinstance(returned, tuple | list):
        outputs = f"a {kind} of {len(returned)} values"
    else:
        outputs = (
            f"a {kind} with attributes {', '.join(sorted(n for n in vars(returned) if not n.startswith('_')))}"
            if (hasattr(returned, "__dict__"))
            else f"a {kind}"
        )
    return SpecError(
        f"the model returns {outputs}: {finding}",
        where=f"model ({type(model).__name__})",
        allowed="a tensor, or an output with `logits`",
        remedy="name the output that holds the predictions: output = ... of the objective, a key or a position",
    )
