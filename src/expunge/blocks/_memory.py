"""Find the weights of the memory of example-tied dropout in a model, and set them to zero for good.

A weight belongs to the memory (theta_2) if the output depends on it when all channels are on, and does not depend on it
when only the base is on. This is tested on the model itself, so it works for any architecture. If a layer mixes a
weight into the base, as a norm over all channels does, the weight belongs to the base. Otherwise the weights of a
memory channel are the rows that write it, the columns that read it, and the two parameters of its norm.

Dependence is tested by the derivative at random positive weights and inputs. There ReLU is the identity. If the
derivative is 0 in every draw, the reason is the structure and not chance. No example's gradient is computed.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from expunge.blocks._tied_layer import base_only, with_memory
from expunge.core.data import Batch
from expunge.core.objective import Objective

_DRAWS = 8


def memory_weights(model: nn.Module, objective: Objective, batch: Batch) -> dict[str, Tensor]:
    """Find the weights of the memory.

    Args:
        model: A model with example-tied dropout; it is not changed.
        objective: Turns the model's outputs into decisions.
        batch: A few examples, for their shape. Only if they are tokens are their values used.

    Returns:
        For each parameter, by name, a bool tensor of its shape: true for the memory's weights.
    """
    answers = _Answers(_neutral(model), objective)
    generator = torch.Generator().manual_seed(0)
    whole, base = ({name: torch.zeros_like(p, dtype=torch.bool) for name, p in model.named_parameters()} for _ in "12")
    for _ in range(_DRAWS):
        weights = {f"model.{name}": _positive(p, generator) for name, p in model.named_parameters()}
        inputs = batch.inputs
        if inputs.is_floating_point():
            inputs = torch.rand(inputs.shape, generator=generator)
        sample = batch._replace(inputs=inputs)
        with with_memory(answers, 1.0):
            _note(whole, grad(answers.score)(weights, sample))
        with base_only(answers):
            _note(base, grad(answers.score)(weights, sample))
    for name in _kernels(model):
        whole[name], base[name] = (_by_channels(depends[name]) for depends in (whole, base))
    return {name: whole[name] & ~base[name] for name in whole}


def drop_memory(model: nn.Module, where: dict[str, Tensor]) -> None:
    """Set the memory's weights to zero, in place; frozen parameters do not change.

    The rows that write a channel and the columns that read it become zero together. The derivative of each contains the
    other as a factor, so no later gradient step changes them, for any masks.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.masked_fill_(where[name], 0)


class _Answers(nn.Module):
    """The model and its objective as one module with a scalar output."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch) -> Tensor:
        """Weighted sum of all logits, with different weights: a plain sum would be constant after a centring norm."""
        logits = self.objective.decisions(self.model, batch).logits
        return (logits * torch.linspace(0.5, 1.5, logits.numel()).view(logits.shape).to(logits)).sum()

    def score(self, weights: dict[str, Tensor], batch: Batch) -> Tensor:
        """The output of `forward` with other weights."""
        score: Tensor = functional_call(self, weights, (batch,))
        return score


def _neutral(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode with reset running statistics, which would not fit the drawn weights."""
    copied = copy.deepcopy(model).eval()
    for module in copied.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.reset_running_stats()
    return copied


def _kernels(model: nn.Module) -> list[str]:
    """Names of the convolutions' weights."""
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.modules.conv._ConvNd)]
    own = {name for name, _ in model.named_parameters()}
    return [weight for name in convolutions if (weight := f"{name}.weight".lstrip(".")) in own]


def _by_channels(depends: Tensor) -> Tensor:
    """One answer per pair of channels: on small images, some entries of a kernel only see padding."""
    return depends.flatten(2).any(2).view(*depends.shape[:2], *[1] * (depends.ndim - 2)).expand_as(depends)


def _positive(parameter: Tensor, generator: torch.Generator) -> Tensor:
    fan = parameter[0].numel() if parameter.ndim > 1 else 1
    return ((0.5 + torch.rand(parameter.shape, generator=generator)) / fan).to(parameter)


def _note(depends: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
    for name, nonzero in depends.items():
        nonzero |= gradients[f"model.{name}"] != 0
