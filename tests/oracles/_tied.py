"""Example-tied dropout written out: its hash on plain whole numbers, its masks, and nets that lack the memory."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.blocks.tied_dropout import TiedLayer

ALL_BITS = 2**64 - 1


def mixed(x: int) -> int:
    """The finaliser of SplitMix64, on 64 bits without sign."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & ALL_BITS
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & ALL_BITS
    return x ^ (x >> 31)


def mask_of(example: int, channels: int, base: int, memory: float) -> list[bool]:
    """Which channels are on for one example."""
    state = mixed((mixed(example & ALL_BITS) + channels) & ALL_BITS)
    drawn = [mixed((state + (c + 1) * 0x9E3779B97F4A7C15) & ALL_BITS) >> 11 for c in range(channels)]
    return [c < base or drawn[c] < memory * 2**53 for c in range(channels)]


def masks_of(ids: list[int], fixed: float, memory: float, channels: int = 8) -> Tensor:
    """The same for several, `[len(ids), channels]`."""
    base = max(round(fixed * channels), 1)
    return torch.tensor([mask_of(example, channels, base, memory) for example in ids])


class Net(nn.Module):
    """One hidden layer of eight, half of it memory, in double precision: a module of somebody's own."""

    def __init__(self, memory: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
        self.tied = TiedLayer(0.5, memory)
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.last(self.tied(torch.tanh(self.first(inputs))))
        return logits

    def by_hand(self, inputs: Tensor, on: Tensor) -> Tensor:
        """Logits with these channels on, `[b, 8]` or `[8]`."""
        hidden = torch.tanh(inputs @ self.first.weight.T + self.first.bias) * on
        return hidden @ self.last.weight.T + self.last.bias


def dense_cnn(model: nn.Sequential, share: float, pixels: int) -> nn.Sequential:
    """The base of a `cnn` as a narrower net without masks, weights copied out.

    Args:
        model: The net; its layers' channels are halved, quartered, ... as `share` says.
        share: Of the channels that are kept.
        pixels: Positions of the last feature map.
    """
    layers: list[nn.Module] = []
    kept = model[0].in_channels
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            out = round(layer.out_channels * share)
            fresh: nn.Module = nn.Conv2d(kept, out, 3, stride=2, padding=1, bias=layer.bias is not None)
            copy_into(fresh, layer.weight[:out, :kept], layer.bias)
            kept = out
        elif isinstance(layer, nn.GroupNorm):
            fresh = nn.GroupNorm(round(layer.num_groups * share), kept)
            copy_into(fresh, layer.weight[:kept], layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            fresh = nn.BatchNorm2d(kept)
            copy_into(fresh, layer.weight[:kept], layer.bias)
            fresh.running_mean, fresh.running_var = layer.running_mean[:kept], layer.running_var[:kept]
        elif isinstance(layer, nn.Linear):
            inputs = kept * pixels if kept * pixels <= layer.in_features else kept
            out = round(layer.out_features * share) if layer is not model[-1] else layer.out_features
            fresh = nn.Linear(inputs, out)
            copy_into(fresh, layer.weight[:out, :inputs], layer.bias)
            kept, pixels = out, 1
        else:
            fresh = layer
        layers.append(fresh if fresh is not layer else plain(layer))
    return nn.Sequential(*layers).double().eval()


def plain(layer: nn.Module) -> nn.Module:
    """The layer without what a block put behind it."""
    copied = copy.deepcopy(layer)
    copied._modules.clear()
    copied._forward_hooks.clear()
    return copied


def copy_into(fresh: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """Give a new layer these weights, and as many of these biases as it has outputs."""
    with torch.no_grad():
        fresh.double().weight.copy_(weight)
        if bias is not None:
            fresh.bias.copy_(bias[: len(fresh.bias)])


def dense_resnet9(model: nn.Module, inputs: Tensor, share: float) -> Tensor:
    """Logits of a `resnet9`'s base by slices of its weights; inside a residual block all channels stay."""

    def convolution(name: str, x: Tensor, out: float = share) -> Tensor:
        conv, norm = model.get_submodule(name)[:2]
        k = round(conv.out_channels * out)
        x = F.conv2d(x, conv.weight[:k, : x.shape[1]], padding=1)
        return F.relu(F.group_norm(x, round(norm.num_groups * out), norm.weight[:k], norm.bias[:k]))

    def residual(name: str, x: Tensor) -> Tensor:
        return x + convolution(f"{name}.1", convolution(f"{name}.0", x, 1.0))

    x = F.max_pool2d(convolution("conv2", convolution("conv1", inputs)), 2)
    x = F.max_pool2d(convolution("conv3", residual("res1", x)), 2)
    x = residual("res2", F.max_pool2d(convolution("conv4", x), 2)).amax((2, 3))
    head = model.get_submodule("head")
    return x @ head.weight[:, : x.shape[1]].T + head.bias
