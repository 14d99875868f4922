"""Draws of one-hot samples, with all randomness from a `torch.Generator`, and the straight-through connection.

A category has the logit l_c after its temperature. The Gumbel-max rule argmax(l_c + g_c) has the law softmax(l); what
is added to the logits never changes with a temperature, and so scaling must come before it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def exponential(like: Tensor, generator: torch.Generator, *draws: int) -> Tensor:
    """Exponential noise `[*draws, *like.shape]`, above 0; drawn where the generator is."""
    noise = torch.empty(*draws, *like.shape, dtype=like.dtype, device=generator.device)
    noise.exponential_(generator=generator)
    # In single precision a draw can round to 0, whose logarithm would make a gradient NaN.
    return noise.clamp_min_(torch.finfo(like.dtype).tiny).to(like.device)


def gumbel(like: Tensor, generator: torch.Generator) -> Tensor:
    """Gumbel noise of the shape of `like`."""
    return exponential(like, generator).log_().neg_()


def one_hot(scores: Tensor) -> Tensor:
    """1 at the largest score of the last dimension, 0 elsewhere."""
    return torch.zeros_like(scores).scatter_(-1, scores.argmax(-1, keepdim=True), 1.0)


def categorical(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One-hot samples of softmax(logits), without a gradient."""
    logits = logits.detach()
    return one_hot(logits + gumbel(logits, generator))


def conditional_gumbel(logits: Tensor, hard: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """Perturbed logits l + g, given that their largest is where `hard` has its 1, as `[draws, *logits.shape]`.

    With exponential E and Z = sum exp(l): -log E_i + log Z at the chosen category i, and elsewhere
    -log(E_j / exp(l_j) + E_i / Z), which is never larger (Paulus et al., 2021, section 3).
    """
    log_weights = F.log_softmax(logits.detach(), -1)
    noise = exponential(logits, generator, draws)
    chosen = (noise * hard).sum(-1, keepdim=True)
    # With normalised weights Z is 1; adding a constant to all perturbed logits changes no softmax.
    others = -torch.logaddexp(noise.log() - log_weights, chosen.log())
    return torch.where(hard.bool(), -chosen.log(), others)


class _StraightThrough(torch.autograd.Function):
    """The value of the first tensor with the gradient of the second."""

    generate_vmap_rule = True

    @staticmethod
    def forward(hard: Tensor, soft: Tensor) -> Tensor:
        return hard.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0]


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """`hard` in the forward pass, to the bit; the gradient of `soft` in the backward pass.

    The usual `hard + soft - soft.detach()` is exact only up to rounding, so that a one-hot sample is not quite one.
    """
    connected: Tensor = _StraightThrough.apply(hard, soft)
    return connected
