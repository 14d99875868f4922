"""Which of a model's weights belong to the memory of example-tied dropout, and how they are dropped for good.

A weight is the memory's (theta_2) if the output depends on it while all channels are on, and does not while the base is
alone. This is asked of the model itself, so that it holds for any architecture: what a layer mixes into the base, as a
norm over all channels does, is the base's. What makes a channel's weights are then the rows that write it, the columns
that read it, and its norm's two numbers.

Dependence is the derivative at random positive weights and inputs: there ReLU lets everything pass, and where the
derivative is 0 in each of several draws, it is so by structure and not by chance. No example's gradient is taken.
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
    """Where the memory's weights are.

    Args:
        model: A model with example-tied dropout; not changed.
        objective: Turns its outputs into decisions.
        batch: A few examples, for their shape; tokens are used as they are.

    Returns:
        A bool tensor for each parameter, by name, in its shape.
    """
    answers = _Answers(_neutral(model), objective)
    generator = torch.Generator().manual_seed(0)
    whole, base = ({name: torch.zeros_like(p, dtype=torch.bool) for name, p in model.named_parameters()} for _ in "12")
    for _ in range(_DRAWS):
        weights = {f"model.{name}": _positive(p, generator) for name, p in model.named_parameters()}
        inputs = batch.inputs
        if inputs.is_floating_point():
            inputs = torch.rand(inputs.shape, generator=generator)
        asked = batch._replace(inputs=inputs)
        with with_memory(answers, 1.0):
            _note(whole, grad(answers.score)(weights, asked))
        with base_only(answers):
            _note(base, grad(answers.score)(weights, asked))
    for name in _kernels(model):
        whole[name], base[name] = (_by_channels(found[name]) for found in (whole, base))
    return {name: whole[name] & ~base[name] for name in whole}


def drop_memory(model: nn.Module, where: dict[str, Tensor]) -> None:
    """Set the memory's weights to zero, in place; frozen parameters stay as they are.

    The rows that write a channel and the columns that read it are zero together, and the derivative of either is a
    product with the other: no gradient step from here brings them back to life, whatever the masks.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.masked_fill_(where[name], 0)


class _Answers(nn.Module):
    """The model and its objective as one module, whose output is a number."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch) -> Tensor:
        """All logits, weighted differently: a plain sum over what a norm has centred would be constant."""
        logits = self.objective.decisions(self.model, batch).logits
        return (logits * torch.linspace(0.5, 1.5, logits.numel()).view(logits.shape).to(logits)).sum()

    def score(self, weights: dict[str, Tensor], batch: Batch) -> Tensor:
        """The same with other weights."""
        found: Tensor = functional_call(self, weights, (batch,))
        return found


def _neutral(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode without running statistics, which belong to other weights than those drawn."""
    copied = copy.deepcopy(model).eval()
    for module in copied.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.reset_running_stats()
    return copied


def _kernels(model: nn.Module) -> list[str]:
    """Names of the weights of convolutions."""
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.modules.conv._ConvNd)]
    own = {name for name, _ in model.named_parameters()}
    return [weight for name in convolutions if (weight := f"{name}.weight".lstrip(".")) in own]


def _by_channels(depends: Tensor) -> Tensor:
    """A kernel from channel to channel as a whole: on small images some taps only ever meet the padding."""
    return depends.flatten(2).any(2).view(*depends.shape[:2], *[1] * (depends.ndim - 2)).expand_as(depends)


def _positive(parameter: Tensor, generator: torch.Generator) -> Tensor:
    fan = parameter[0].numel() if parameter.ndim > 1 else 1
    return ((0.5 + torch.rand(parameter.shape, generator=generator)) / fan).to(parameter)


def _note(depends: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    for name, seen in depends.items():
        seen |= found[f"model.{name}"] != 0
