"""A bilinear layer in the place of a perceptron: f(x) = P [(W x) * (V x)], which can be taken apart (2410.08417).

`at` names one of three things, and the layer replaces it:

    a module that holds a whole perceptron     model.layers.*.mlp, transformer.h.*.mlp (Hugging Face)
    the first of two linear layers             blocks.*.up (gpt, vit), 1 (mlp), 10 (cnn); with the activation between
                                               them and the second layer, which become the identity
    an activation                              2 (mlp, cnn): a layer that keeps the width; behind convolutions 1 x 1

Put it in before training: a new layer knows nothing. A trained gated perceptron is converted by `from_gated`, and then
by training while `anneal` makes its gate linear. `remove_modes` needs such a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from expunge.base.part import Count
from expunge.blocks._bilinear_layer import BilinearLayer, anneal, bilinear_layers
from expunge.blocks._perceptron import gated_weights, perceptron_at
from expunge.core.contracts import Block
from expunge.core.modules import is_transposed

__all__ = ["Bilinear", "BilinearLayer", "anneal", "bilinear_layers", "from_gated"]


@dataclass(frozen=True)
class Bilinear(Block):
    """A bilinear layer in the place of a perceptron or an activation."""

    cite: ClassVar[str] = "pearce2025bilinear"
    replaces: ClassVar[bool] = True

    hidden: Count | None = None
    """Number of products; by default as many as the replaced layers have weights for, or for an activation its
    width."""
    bias: bool = True
    """Whether the projections have biases."""

    def __call__(self, model: nn.Module, path: str) -> None:
        """Replace the perceptron at the path, in place; the new weights come from torch's global generator.

        Raises:
            SpecError: There is no perceptron at this path; the message names the module and its shapes.
        """
        place = perceptron_at(model, path)
        matched = max(round(place.weights / (2 * place.inputs + place.outputs)), 1)
        hidden = matched if self.hidden is None else self.hidden
        layer = BilinearLayer(place.inputs, hidden, place.outputs, bias=self.bias, dim=place.dim)
        replace(model, path, layer)
        for emptied in place.emptied:
            replace(model, emptied, nn.Identity())


def from_gated(model: nn.Module, path: str) -> BilinearLayer:
    """Replace a trained gated perceptron, such as Llama's, by a layer with its weights that computes the same.

    The layer becomes bilinear while `anneal` raises its linear share from 0 to 1 and training goes on.

    Args:
        model: Any module; it is changed in place.
        path: Path of the perceptron.

    Raises:
        SpecError: It is not a gated perceptron of three linear layers with SiLU.
    """
    parts = gated_weights(path, model.get_submodule(path))
    weights = [layer.weight.T if is_transposed(layer) else layer.weight for layer in parts]
    has_bias = any(layer.bias is not None for layer in parts)
    layer = BilinearLayer(weights[0].shape[1], len(weights[0]), len(weights[2]), bias=has_bias).to(weights[0])
    with torch.no_grad():
        for ours, weight, theirs in zip((layer.left, layer.right, layer.out), weights, parts, strict=True):
            ours.weight.copy_(weight)
            if ours.bias is not None:
                ours.bias.zero_() if theirs.bias is None else ours.bias.copy_(theirs.bias)
    layer.linear_share = 0.0
    replace(model, path, layer)
    return layer


def replace(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put another module in the place of the one at this path; it gets its mode and its kind of numbers."""
    parent, _, name = path.rpartition(".")
    old = model.get_submodule(path)
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    module.train(old.training)
    model.get_submodule(parent)._modules[name] = module if like is None else module.to(like)
