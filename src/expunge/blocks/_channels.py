"""Find the layer that writes the channels of a module's output, and the dimension of the channels."""

from __future__ import annotations

from torch import nn

_FIRST = (nn.modules.conv._ConvNd, nn.GroupNorm, nn.modules.batchnorm._NormBase)
"""Layers whose channels are dimension 1."""


def writer_of(model: nn.Module, path: str) -> nn.Module | None:
    """The last module with its own weights inside the module at this path; otherwise the last one registered before."""
    writer, inside = None, False
    for name, module in model.named_modules():
        within = name == path or name.startswith(f"{path}.")
        if inside and not within:
            break
        inside = within
        if next(module.parameters(recurse=False), None) is not None:
            writer = module
    return writer


def channel_dim(writer: nn.Module | None) -> int:
    """The dimension of the channels behind such a layer: 1 for convolutions and their norms, otherwise the last."""
    return 1 if writer is None or isinstance(writer, _FIRST) else -1


def channels_of(norm: nn.GroupNorm | nn.LayerNorm) -> int:
    """Number of channels of a norm; for a layer norm, the size of the last dimension."""
    return norm.num_channels if isinstance(norm, nn.GroupNorm) else int(norm.normalized_shape[-1])


def width_behind(writer: nn.Module | None) -> int | None:
    """Number of channels that a layer writes; `None` if it is not known."""
    if isinstance(writer, nn.GroupNorm | nn.LayerNorm):
        return channels_of(writer)
    if isinstance(writer, nn.RNNBase):
        return (writer.proj_size or writer.hidden_size) * (2 if writer.bidirectional else 1)
    names = ("out_features", "out_channels", "num_features", "embedding_dim", "nf", "hidden_size")
    return next((int(getattr(writer, name)) for name in names if hasattr(writer, name)), None)
