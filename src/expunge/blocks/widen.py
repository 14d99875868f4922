"""Add channels to a hidden layer of a trained model without changing its outputs.

The layer that writes the channels gets new rows with small random weights. Norms in between get neutral entries. The
layer that reads the channels gets new columns of zeros, so the new channels have no effect until training changes that.
Supported layers are `nn.Linear`, `nn.Conv1d`, `nn.Conv2d` and Hugging Face's `Conv1D`, also the two halves of a gated
perceptron. Supported norms are batch, instance and group norm; group norm gets whole groups. A layer norm over the
channels is refused, because it would mix new and old channels.

In a spec, `at` names the layers that write. In Python, `widen_hidden` widens every layer that it can, and checks the
outputs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from expunge.base.errors import MissingError, SpecError
from expunge.base.part import Positive
from expunge.blocks._hidden import Hidden, hidden_layers, inputs_of
from expunge.core.contracts import Block
from expunge.core.modules import is_transposed

Run = Callable[[nn.Module], Tensor]
"""A function from a model to its outputs on a fixed batch."""
TOLERANCE = 1e-9
"""Largest accepted change of an output in double precision, relative to the largest output."""
_SHOWN = 4


@dataclass(frozen=True)
class Widen(Block):
    """New channels in the hidden layer that a module writes."""

    preserves: ClassVar[bool] = True

    share: Positive = 1.0
    """Number of new channels divided by the number of the layer's channels; 1 doubles the layer."""

    def __call__(self, model: nn.Module, path: str) -> None:
        """Widen the layer in place; the new weights come from torch's global generator.

        Raises:
            SpecError: The layer cannot be widened; the message says why.
        """
        layers, refusals = hidden_layers(model)
        hidden = next((layer for layer in layers if path in layer.paths), None)
        if hidden is None:
            finding = f"{path!r} cannot be widened: {refusals.get(path, 'it is not a linear layer or a convolution')}"
            raise SpecError(finding, where="at", allowed=", ".join(layer.path for layer in layers) or "none")
        grow(hidden, hidden.added(self.share), None)


def widen_hidden(model: nn.Module, run: Run, share: float, generator: torch.Generator | None = None) -> list[Hidden]:
    """Widen every hidden layer for which this is possible, in place.

    Each layer is first widened in a copy in double precision. If the outputs change, or the copy no longer runs, the
    layer is left as it is.

    Args:
        model: Any module.
        run: Computes the outputs to compare; called in evaluation mode.
        share: Number of new channels divided by the number of a layer's own channels.
        generator: Draws the new weights; by default torch's global generator.

    Returns:
        The layers that were widened, with their earlier number of channels.

    Raises:
        MissingError: No layer can be widened; the message says why.
    """
    layers, refusals = hidden_layers(model)
    trial = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        before = run(trial)
    widened: list[Hidden] = []
    for own, tried in zip(layers, hidden_layers(trial)[0], strict=True):
        if any(set(own.paths) & set(wider.paths) or own.reader is wider.reader for wider in widened):
            continue
        grow(tried, tried.added(share), torch.Generator().manual_seed(0))
        reason = changes(trial, run, before)
        if reason:
            refusals[own.path] = reason
            shrink(tried)
        else:
            widened.append(own)
    if not widened:
        raise cannot_widen(refusals)
    for own in widened:
        grow(own, own.added(share), generator)
    return widened


def changes(model: nn.Module, run: Run, before: Tensor) -> str:
    """How the outputs of a model in double precision differ from those before; empty if they do not."""
    try:
        with torch.no_grad():
            after = run(model)
    except (RuntimeError, ValueError, IndexError, SpecError) as error:
        return f"the wider model does not run ({str(error).partition(chr(10))[0]})"
    scale = max(float(before.abs().max()), 1.0)
    if after.shape != before.shape or not float((after - before).abs().max()) <= TOLERANCE * scale:
        return "new channels change the model's outputs"
    return ""


def cannot_widen(refusals: dict[str, str]) -> MissingError:
    """The error for a model in which no hidden layer can be widened."""
    reasons = [f"{path!r}: {reason}" for path, reason in refusals.items()] or ["it has no linear layer or convolution"]
    more = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
    return MissingError(
        f"no hidden layer of the model can be widened ({'; '.join(reasons[:_SHOWN])}{more})",
        where="model",
        allowed="a linear layer or a convolution whose outputs are read by exactly one other such layer",
        remedy='put the block "tied_dropout" into the model before training, or choose another method',
    )


@torch.no_grad()
def grow(hidden: Hidden, added: int, generator: torch.Generator | None) -> None:
    """Add channels in place: random rows, neutral norms, columns of zeros."""
    reader, inputs = hidden.reader, added * hidden.positions
    for writer in hidden.writers:
        rows = 1 if is_transposed(writer) else 0
        shape = list(writer.weight.shape)
        shape[rows] = added
        # The bound of torch's own initialisation of such layers.
        bound = 1 / math.sqrt(writer.weight.numel() / writer.weight.shape[rows])
        weight, bias = (2 * bound * torch.rand(size, generator=generator) - bound for size in (shape, [added]))
        _extend(writer, "weight", weight, rows)
        _extend(writer, "bias", bias, 0)
    for norm in hidden.norms:
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            _extend(norm, name, torch.full((added,), value), 0)
    shape, columns = list(reader.weight.shape), 0 if is_transposed(reader) else 1
    shape[columns] = inputs
    _extend(reader, "weight", torch.zeros(shape), columns)
    _update_sizes(hidden)


@torch.no_grad()
def shrink(hidden: Hidden) -> None:
    """Remove the added channels, in place."""
    reader, count = hidden.reader, hidden.channels
    inputs = hidden.positions * count
    for writer in hidden.writers:
        _cut(writer, "weight", count, 1 if is_transposed(writer) else 0)
        _cut(writer, "bias", count, 0)
    for norm in hidden.norms:
        for name in ("weight", "bias", "running_mean", "running_var"):
            _cut(norm, name, count, 0)
    _cut(reader, "weight", inputs, 0 if is_transposed(reader) else 1)
    _update_sizes(hidden)


def _extend(module: nn.Module, name: str, more: Tensor, dim: int) -> None:
    tensor = getattr(module, name, None)
    if isinstance(tensor, Tensor):
        _set(module, name, torch.cat([tensor.detach(), more.to(tensor)], dim))


def _cut(module: nn.Module, name: str, count: int, dim: int) -> None:
    tensor = getattr(module, name, None)
    if isinstance(tensor, Tensor):
        _set(module, name, tensor.detach().narrow(dim, 0, count).clone())


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    old = getattr(module, name)
    setattr(module, name, nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value)


def _update_sizes(hidden: Hidden) -> None:
    """Set the modules' size attributes to the sizes of their weights."""
    count = hidden.channels_now
    for writer in hidden.writers:
        _number(writer, ("out_features", "out_channels", "nf"), count)
    _number(hidden.reader, ("in_features", "in_channels", "nx"), inputs_of(hidden.reader))
    for norm in hidden.norms:
        if isinstance(norm, nn.GroupNorm):
            norm.num_groups = norm.num_groups * count // norm.num_channels
        _number(norm, ("num_features", "num_channels"), count)


def _number(module: Any, names: tuple[str, ...], value: int) -> None:
    for name in names:
        if hasattr(module, name):
            setattr(module, name, value)
