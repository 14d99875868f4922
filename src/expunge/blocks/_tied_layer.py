"""Example-tied dropout: channels that are always on, and channels that are on for some examples only (2307.09542).

The first channels of a layer are its *base* (theta_1 in REM, 2505.17730). The others are its *memory* (theta_2). Each
memory channel is on for an example with probability `memory`. The example's id decides this, so it is the same on every
pass and in every process. Features of single examples can then be stored in their own memory channels, and are removed
with these channels.

    training      each example has its own memory channels, by id; with `memory` 0 it has none
    evaluation    all memory is off, and nothing is rescaled, as in REM's code ("drop"); 2307.09542 rescales

A mask is a hash of the id, the channel and the number of channels: nothing is stored, no random state is used, and
layers of the same width share their masks, as in REM. `base_only` and `with_memory` change the rule for one model
inside a `with` block. To let examples share a mask, give them the same id (`SHARED`) in the batch.

Weights of the memory are part of the model as long as they are not zero. A published model contains what they store,
although audits, which evaluate the base, do not see it.
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
"""An id that no example has, for examples that share one mask. (REM's code uses 0, which is also an example's id.)"""

_GOLDEN, _FIRST, _SECOND = (c - 2**64 for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_BITS = 53


@dataclass(frozen=True)
class _Rule:
    """The rule inside a `with` block: whether memory is on, and with which probability instead of the layer's own."""

    remember: bool
    memory: float | None = None


class TiedLayer(nn.Module):
    """Example-tied dropout of a hidden layer's channels; it has no weights.

    If memory is on, it reads the ids of the batch from `expunge.core.example_ids`.

    Args:
        fixed: Share of the channels that is always on, rounded to whole channels, at least one.
        memory: Probability with which each other channel is on for an example in training.
        dim: The dimension of the channels; examples are dimension 0.
    """

    def __init__(self, fixed: float, memory: float = 0.0, dim: int = 1) -> None:
        super().__init__()
        self.fixed, self.memory, self.dim = fixed, memory, dim
        self.rule: _Rule | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        """The hidden layer `[b, ...]` with zeros in the channels that are off.

        Raises:
            SpecError: Ids are needed, but there are none or not one per example.
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
        # Filled, not multiplied: zero times infinity is NaN.
        return hidden.masked_fill(~on.view(shape), 0)

    def mask(self, ids: Tensor, channels: int, memory: float | None = None) -> Tensor:
        """Which of the channels are on for each id, `[len(ids), channels]` bool."""
        channel = torch.arange(channels, device=ids.device)
        threshold = int((self.memory if memory is None else memory) * 2**_BITS)
        return (channel < base_channels(channels, self.fixed)) | (example_hash(ids, channels) < threshold)

    def extra_repr(self) -> str:
        """The settings that `print` shows."""
        return f"fixed={self.fixed}, memory={self.memory}, dim={self.dim}"


def _required_ids(count: int) -> Tensor:
    ids = current_ids()
    if ids is not None and len(ids) == count:
        return ids
    raise SpecError(
        f"got {'no' if ids is None else len(ids)} ids for {count} examples",
        where="model (tied dropout)",
        allowed="one id per example if memory is on, as in training",
        remedy="call the model inside `with expunge.core.example_ids.example_ids(ids):`",
    )


def base_channels(channels: int, fixed: float) -> int:
    """Number of channels that are always on: the nearest whole number, at least one."""
    return max(round(fixed * channels), 1)


def example_hash(ids: Tensor, channels: int) -> Tensor:
    """Whole numbers below 2^53, uniform and independent over ids, channels and numbers of channels.

    Each id starts its own stream of the generator SplitMix64 (Steele, Lea and Flood, 2014).

    Args:
        ids: Ids of the examples, `[b]` int64.
        channels: Number of hashes per id.

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
    """Logical right shift of 64 bits, which fills with zeros: torch's own shift keeps the sign."""
    shifted: Tensor = (x >> bits) & (2 ** (64 - bits) - 1)
    return shifted


def tied_layers(model: nn.Module) -> list[TiedLayer]:
    """The model's layers of example-tied dropout, in the order of registration."""
    return [module for module in model.modules() if isinstance(module, TiedLayer)]


@contextmanager
def base_only(model: nn.Module) -> Iterator[None]:
    """Inside, the model's memory is off, also in training mode."""
    with _following(model, _Rule(remember=False)):
        yield


@contextmanager
def with_memory(model: nn.Module, memory: float | None = None) -> Iterator[None]:
    """Inside, each example has its memory channels, also in evaluation mode.

    Args:
        model: Any model; without tied dropout this has no effect.
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
