"""Example-tied dropout: channels that are always on, and channels that are on for some examples only (2307.09542).

The first channels of a layer are its *base* (theta_1 in REM, 2505.17730). Each of the others, its *memory* (theta_2),
is on for an example with probability `memory`, and whether it is follows from the example's id: the same on every pass,
in every process. What is peculiar to an example can then settle in the channels that it has, and goes when they go.

    training      each example has its own memory channels, by id; with `memory` 0 none has any
    evaluation    all memory is off, and nothing is rescaled, as in REM's code ("drop"); 2307.09542 rescales

A mask is a hash of the id, the channel and the number of channels: nothing is stored, no random state is drawn from,
and layers of one width share their masks, as REM's do. `base_only` and `with_memory` say otherwise for one model and
one block of code; to let examples share a mask, give them one id (`SHARED`) in the batch.

Weights of the memory are part of the model as long as they are not zero: whoever ships them ships what they hold,
though audits, which evaluate the base, do not see it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.core.example_ids import current_ids

SHARED = -1
"""An id that no example has, for those that are to share one mask (REM's code takes 0, which is also an example's)."""

_GOLDEN, _FIRST, _SECOND = (c - 2**64 for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_BITS = 53


@dataclass(frozen=True)
class _Rule:
    """What holds inside a block of code: whether memory is on, and with which probability instead of the layer's."""

    remember: bool
    memory: float | None = None


class TiedLayer(nn.Module):
    """Example-tied dropout of a hidden layer's channels; it has no weights.

    Where memory is on it asks `expunge.core.example_ids` for the ids of the batch.

    Args:
        fixed: Share of the channels that is always on, rounded to whole channels and at least one.
        memory: Probability with which each of the others is on for an example in training.
        dim: The dimension of the hidden layer that counts channels; examples are dimension 0.
    """

    def __init__(self, fixed: float, memory: float = 0.0, dim: int = 1) -> None:
        super().__init__()
        self.fixed, self.memory, self.dim = fixed, memory, dim
        self.rule: _Rule | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        """The hidden layer `[b, ...]` with zeros in the channels that are off.

        Raises:
            SpecError: Ids are needed and there are none, or not one per example.
        """
        channels, shape = hidden.shape[self.dim], [1] * hidden.ndim
        rule = self.rule or _Rule(remember=self.training)
        memory = self.memory if rule.memory is None else rule.memory
        shape[self.dim] = channels
        if not rule.remember or memory == 0:
            on = torch.arange(channels, device=hidden.device) < base_channels(channels, self.fixed)
        else:
            shape[0] = len(hidden)
            on = self.mask(_required_ids(len(hidden)).to(hidden.device), channels, memory)
        # Filled, not multiplied: zero times infinity is no number.
        return hidden.masked_fill(~on.view(shape), 0)

    def mask(self, ids: Tensor, channels: int, memory: float | None = None) -> Tensor:
        """Which of so many channels are on for each id, `[len(ids), channels]` bool."""
        channel = torch.arange(channels, device=ids.device)
        threshold = int((self.memory if memory is None else memory) * 2**_BITS)
        return (channel < base_channels(channels, self.fixed)) | (example_hash(ids, channels) < threshold)

    def extra_repr(self) -> str:
        """What `print` shows of it."""
        return f"fixed={self.fixed}, memory={self.memory}, dim={self.dim}"


def _required_ids(count: int) -> Tensor:
    ids = current_ids()
    if ids is not None and len(ids) == count:
        return ids
    raise SpecError(
        f"got {'no' if ids is None else len(ids)} ids for {count} examples",
        where="model (tied dropout)",
        allowed="one id per example wherever memory is on, as in training",
        remedy="call the model inside `with expunge.core.example_ids.example_ids(ids):`",
    )


def base_channels(channels: int, fixed: float) -> int:
    """How many channels are always on: the nearest whole number, at least one."""
    return max(round(fixed * channels), 1)


def example_hash(ids: Tensor, channels: int) -> Tensor:
    """Whole numbers below 2^53, uniform and independent over ids, channels and numbers of channels.

    The id starts a stream of its own of the generator SplitMix64 (Steele, Lea and Flood, 2014).

    Args:
        ids: Of the examples, `[b]` int64.
        channels: How many numbers each gets.

    Returns:
        `[b, channels]` int64, the same on every machine.
    """
    state = _mixed(_mixed(ids) + channels)
    steps = torch.arange(1, channels + 1, device=ids.device) * _GOLDEN
    return _shifted(_mixed(state[:, None] + steps), 64 - _BITS)


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    mixed: Tensor = x ^ _shifted(x, 31)
    return mixed


def _shifted(x: Tensor, bits: int) -> Tensor:
    """The 64 bits to the right, with zeros from the left: torch's own shift keeps the sign."""
    shifted: Tensor = (x >> bits) & (2 ** (64 - bits) - 1)
    return shifted


def tied_layers(model: nn.Module) -> list[TiedLayer]:
    """The model's example-tied dropout layers, in the order in which they are registered."""
    return [module for module in model.modules() if isinstance(module, TiedLayer)]


@contextmanager
def base_only(model: nn.Module) -> Iterator[None]:
    """Inside, the model's memory is off in training mode too."""
    with _following(model, _Rule(remember=False)):
        yield


@contextmanager
def with_memory(model: nn.Module, memory: float | None = None) -> Iterator[None]:
    """Inside, each example has its memory channels in evaluation mode too.

    Args:
        model: Any model; without tied dropout nothing changes.
        memory: Probability of each memory channel instead of the layers' own; 1 switches all of them on.
    """
    with _following(model, _Rule(remember=True, memory=memory)):
        yield


@contextmanager
def _following(model: nn.Module, rule: _Rule) -> Iterator[None]:
    before = [(layer, layer.rule) for layer in tied_layers(model)]
    for layer, _ in before:
        layer.rule = rule
    try:
        yield
    finally:
        for layer, old in before:
            layer.rule = old
