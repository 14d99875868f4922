"""Hidden layers that may be widened: the layer that writes the channels, the norms, and the layer that reads them.

Modules with weights are paired in the order of registration, which for most models is the order in which they run. Two
consecutive layers of the same size may be the two halves of a gated perceptron, which write the channels together. Only
a run can show whether a pair is right, so `widen` compares the outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from expunge.core.modules import is_transposed

_LINEAR, _CONVOLUTIONS = (nn.Linear,), (nn.Conv1d, nn.Conv2d)
_CHANNEL_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm1d, nn.InstanceNorm2d)
"""Norms that treat each channel separately."""
_MIXING_NORMS = (nn.LayerNorm, nn.LocalResponseNorm)
"""Norms over all channels: new channels would change the values of the others."""
COMPLEX = "its weights are complex, and those of new channels would be real"


@dataclass(frozen=True, eq=False)
class Hidden:
    """The channels between a layer that writes them and one that reads them."""

    paths: tuple[str, ...]
    """Paths of the layers that write."""
    writers: tuple[Any, ...]
    """One layer, or the two layers whose outputs are multiplied."""
    norms: tuple[Any, ...]
    reader: Any
    channels: int

    @property
    def path(self) -> str:
        """Path of the first layer that writes."""
        return self.paths[0]

    @property
    def positions(self) -> int:
        """Number of reader inputs per channel: the positions of a flattened feature map, otherwise 1."""
        return inputs_of(self.reader) // self.channels_now

    @property
    def channels_now(self) -> int:
        """Number of channels, including those that were added."""
        return outputs_of(self.writers[0])

    def added(self, share: float) -> int:
        """Number of channels to add for this share: whole groups of a group norm, and at least one channel or group."""
        groups = [self.channels // norm.num_groups for norm in self.norms if isinstance(norm, nn.GroupNorm)]
        step = math.lcm(1, *groups)
        return max(round(share * self.channels / step), 1) * step


def hidden_layers(model: nn.Module) -> tuple[list[Hidden], dict[str, str]]:
    """The hidden layers that may be widened, as far as their structure shows.

    Args:
        model: Any module.

    Returns:
        The layers in the model's order, with gated pairs before other pairs of the same layers; and, for each other
        layer, its path -> the reason why it cannot be widened.
    """
    layers = [(path, module) for path, module in model.named_modules() if _holds_weights(module)]
    shared = _shared(model)
    pairs: list[Hidden] = []
    refusals: dict[str, str] = {}
    for i, (path, writer) in enumerate(layers):
        if not _supported(writer):
            continue
        if _is_complex(writer):
            refusals[path] = COMPLEX
            continue
        later = layers[i + 1 :]
        if _gated(writer, later, shared):
            paths, writers = (path, later[0][0]), (writer, later[0][1])
            pairs.append(Hidden(paths, writers, (), later[1][1], outputs_of(writer)))
        count = next((k for k, (_, module) in enumerate(later) if not _is_norm(module)), len(later))
        norms = [module for _, module in later[:count]]
        reader = later[count] if count < len(later) else None
        reason = _reason(writer, norms, reader, shared)
        if reason or reader is None:
            refusals[path] = reason
        else:
            pairs.append(Hidden((path,), (writer,), tuple(norms), reader[1], outputs_of(writer)))
    return pairs, refusals


def outputs_of(layer: Any) -> int:
    """Number of channels that a layer writes."""
    return int(layer.weight.shape[1 if is_transposed(layer) else 0])


def inputs_of(layer: Any) -> int:
    """Number of channels that a layer reads."""
    return int(layer.weight.shape[0 if is_transposed(layer) else 1])


def _gated(writer: Any, later: Sequence[tuple[str, Any]], shared: set[int]) -> bool:
    """Whether this layer and the next one may together write the input of the layer after both."""
    if len(later) < 2 or not (_supported(later[0][1]) and _supported(later[1][1])):
        return False
    second, reader = later[0][1], later[1]
    kinds = [(type(layer), layer.weight.shape, layer.weight.dtype) for layer in (writer, second)]
    return kinds[0] == kinds[1] and not _reason(writer, [], reader, shared) and not _reason(second, [], reader, shared)


def _reason(writer: Any, norms: Sequence[Any], reader: tuple[str, Any] | None, shared: set[int]) -> str:
    """The reason why the pair cannot be widened; empty if it may be."""
    if reader is None:
        return "no layer reads its outputs"
    path, layer = reader
    if not _supported(layer):
        return f"{path!r}, which follows, is a {type(layer).__name__}"
    if _is_complex(layer):
        return f"of {path!r}, which follows: {COMPLEX}"
    if any(isinstance(norm, _MIXING_NORMS) for norm in norms):
        return f"a {type(norms[0]).__name__} before {path!r} mixes its channels"
    flat = isinstance(writer, _CONVOLUTIONS) and isinstance(layer, _LINEAR)
    width, channels = inputs_of(layer), outputs_of(writer)
    if width % channels or (width != channels and not flat):
        return f"{path!r} does not read its {channels} outputs one by one"
    if isinstance(layer, _CONVOLUTIONS) and not isinstance(writer, _CONVOLUTIONS):
        return f"{path!r} is a convolution"
    if any(_channels(norm) != channels for norm in norms):
        return f"a norm before {path!r} has another number of channels"
    weights = [*writer.parameters(recurse=False), *layer.parameters(recurse=False)]
    if any(id(parameter) in shared for parameter in weights):
        return f"its weights or those of {path!r} are also used elsewhere"
    if not (writer.weight.requires_grad and layer.weight.requires_grad):
        return f"its weights or those of {path!r} are frozen"
    return ""


def _supported(layer: Any) -> bool:
    if type(layer) in _CONVOLUTIONS:
        return bool(layer.groups == 1)
    return type(layer) in _LINEAR or is_transposed(layer)


def _is_complex(layer: Any) -> bool:
    return any(parameter.is_complex() for parameter in layer.parameters(recurse=False))


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, (*_CHANNEL_NORMS, *_MIXING_NORMS, nn.GroupNorm))


def _channels(norm: Any) -> int:
    return int(norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features)


def _holds_weights(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None or _is_norm(module)


def _shared(model: nn.Module) -> set[int]:
    """Ids of parameters with several names."""
    seen, twice = set[int](), set[int]()
    parameter: Tensor
    for _, parameter in model.named_parameters(remove_duplicate=False):
        (twice if id(parameter) in seen else seen).add(id(parameter))
    return twice
