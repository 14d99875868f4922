"""Low-rank adapters (LoRA, Hu et al., 2106.09685): train a few numbers beside frozen weights, then add them to these.

A linear layer with weights W `[outputs, inputs]` and an adapter computes W x + (alpha / rank) B A x. Only A
`[rank, inputs]` and B `[outputs, rank]` are trained. A is drawn as PEFT draws it, uniformly within 1 / sqrt(inputs),
and B is 0, so the model starts as it was. Merging adds (alpha / rank) B A to W in single precision and casts once,
because sums in bfloat16 lose most of a small update. The merged model has the names and shapes of the plain
architecture, and it is the model that is audited.

A and B are two more parameters of the layer, `lora_A` and `lora_B`, and a forward hook adds their product. So the
model's classes and the names of its weights stay, for models from transformers and for any other module.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from expunge.base.errors import RunError, SpecError, nearest
from expunge.base.part import Count, Part, Positive
from expunge.core.data import Batch
from expunge.core.device import computing
from expunge.core.generators import generator_of
from expunge.core.modules import (
    SharedParameter,
    embedding_layer,
    evaluating,
    is_transposed,
    owning,
    sharing,
)
from expunge.core.norms import training_mode
from expunge.core.objective import Objective
from expunge.numerics.precision import wide

ALL = "all-linear"
"""The value of `targets` for every linear layer but the output layer of a language model."""
TOLERANCE = 1e-3
"""Largest difference between outputs before and after merging, as a share of the largest output."""


@dataclass(frozen=True)
class Adapter(Part):
    """What an adapter looks like."""

    rank: Count = 16
    """Rank of the update of each layer."""
    alpha: Positive = 16.0
    """The update is scaled by alpha / rank. With alpha equal to the rank, the best rate hardly depends on the rank."""
    targets: str | tuple[str, ...] = ALL
    """Linear layers that get an adapter: `all-linear`, or the last steps of their paths, such as `q_proj` or
    `layers.*.mlp.up`; `*` does not match a dot."""


def refuse_unadaptable(part: Any, where: str) -> None:
    """Refuse an adapter for a part that does not train by gradient steps alone; `None` stands for a training.

    Raises:
        SpecError: It is a method that changes weights in another way, or an attack that trains nothing.
    """
    if part is None or (getattr(part, "adapts", True) and getattr(part, "trains", True)):
        return
    raise SpecError(
        f"{type(part).__name__} does not train what an adapter could replace",
        where=f"{where}.adapter",
        allowed="methods and attacks that take gradient steps and change weights in no other way",
        remedy="leave the adapter out; retrained models have theirs under [train.adapter]",
    )


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that can have an adapter, by path: linear ones with trainable real weights of their own.

    Left out are tied weights, because a merged update would also change the other layer, and the output projection of
    `nn.MultiheadAttention`, whose weights are used without calling it.
    """
    holders: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    return {
        path: layer
        for path, layer in model.named_modules()
        if (isinstance(layer, nn.Linear) or is_transposed(layer))
        and not isinstance(layer, NonDynamicallyQuantizableLinear)
        and (weight := layer._parameters.get("weight")) is not None
        and weight.requires_grad
        and weight.is_floating_point()
        and holders[id(weight)] == 1
    }


def targets_of(model: nn.Module, adapter: Adapter, where: str = "adapter") -> dict[str, nn.Module]:
    """The layers that get an adapter, by path.

    Raises:
        SpecError: A target matches no layer that can have an adapter, or the rank exceeds the inputs of a layer.
    """
    layers = linear_layers(model)
    chosen = _all(model, layers) if adapter.targets == ALL else _named(layers, adapter.targets, where)
    for path, layer in chosen.items():
        inputs, _ = _sizes(layer)
        if adapter.rank > inputs:
            raise SpecError(
                f"the rank is {adapter.rank}, and {path!r} has {inputs} inputs",
                where=f"{where}.rank",
                allowed=f"at most {min(_sizes(other)[0] for other in chosen.values())}, for these targets",
                remedy="lower the rank, or name other targets",
            )
    return chosen


def attach(model: nn.Module, adapter: Adapter, seed: int, where: str = "adapter") -> nn.Module:
    """Freeze the model and give its layers an adapter, in place.

    Args:
        model: The model, without an adapter.
        adapter: Rank, scale and targets.
        seed: Decides the initial values of A.
        where: Name of the setting, for messages.

    Returns:
        The model, which computes what it did before.

    Raises:
        SpecError: See `targets_of`.
    """
    layers, generator = targets_of(model, adapter, where), generator_of(seed, "adapter")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for parameter in trained.values():
        parameter.requires_grad_(False)
    model.lora_frozen = tuple(trained)  # type: ignore[assignment]  # a plain attribute, which a copy keeps
    for layer in layers.values():
        inputs, outputs = _sizes(layer)
        first = (2 * torch.rand(adapter.rank, inputs, generator=generator) - 1) * inputs**-0.5
        weight = layer.get_parameter("weight")
        layer.lora_A = nn.Parameter(first.to(weight))
        layer.lora_B = nn.Parameter(weight.new_zeros(outputs, adapter.rank))
        layer.lora_scale = adapter.alpha / adapter.rank  # type: ignore[assignment]
        # In front of other hooks, such as that of a block behind the layer: these read what the merged layer returns.
        layer.register_forward_hook(_add_update, prepend=True)
    return training_mode(model) if model.training else model


def adapted(model: nn.Module, adapter: Adapter, seed: int, where: str = "adapter") -> nn.Module:
    """A copy of the model with an adapter. It has the model's own weights, which are in memory once.

    Raises:
        SpecError: See `targets_of`.
    """
    copied = attach(sharing(model), adapter, seed, where)
    copied.lora_base = _digests(model)  # type: ignore[assignment]
    return copied


def merge(model: nn.Module) -> nn.Module:
    """Add the adapter to the weights, in place. The model has its own architecture and trainable parameters again.

    Weights that the model shares with the one that got the adapter are copied: these stay as they are.
    """
    for layer in _with_adapter(model):
        weight, first, last = (layer.get_parameter(name) for name in ("weight", "lora_A", "lora_B"))
        with torch.no_grad():
            update = layer.lora_scale * (wide(last) @ wide(first))  # type: ignore[operator]
            total = wide(weight) + (update.T if is_transposed(layer) else update)
            if isinstance(weight, SharedParameter):
                layer.weight = nn.Parameter(total.to(weight.dtype), requires_grad=False)
            else:
                weight.copy_(total)
        del layer.lora_A, layer.lora_B, layer.lora_scale
        for key in [key for key, hook in layer._forward_hooks.items() if hook is _add_update]:
            del layer._forward_hooks[key]
    owning(model)
    model.__dict__.pop("lora_base", None)
    for name in model.__dict__.pop("lora_frozen", ()):
        model.get_parameter(name).requires_grad_(True)
    return model


def merged(model: nn.Module, objective: Objective, batch: Batch, where: str = "adapter") -> tuple[nn.Module, float]:
    """Merge a trained adapter, and check that nothing but the adapter was trained.

    Args:
        model: The trained model with the adapter that `adapted` gave it; changed in place.
        objective: Runs both.
        batch: Examples on which outputs before and after merging are compared.
        where: What trained the adapter, for messages.

    Returns:
        The merged model, and the largest difference between its outputs and those with the adapter.

    Raises:
        RunError: The model has no adapter, its weights were changed, or merging changes its outputs.
    """
    before = model.__dict__.get("lora_base")
    if before is None or next(_with_adapter(model), None) is None:
        raise RunError("it returned a model without the adapter", where=where, remedy="leave the adapter out")
    # The model shares its weights with the one that it started from, so a comparison would not see a change of both.
    after = _digests(model)
    moved = [name for name, digest in before.items() if after.get(name) != digest]
    if moved:
        raise RunError(f"it changed {moved[0]!r}, which the adapter leaves as it is", where=where)
    with computing("float32"), evaluating(model), torch.no_grad():
        expected = objective.prediction(model, batch)
        actual = objective.prediction(merge(model), batch)
    gap = float((actual - expected).abs().max())
    if gap > TOLERANCE * max(float(expected.abs().max()), 1.0):
        raise RunError(
            f"outputs differ by {gap:.2g} between the merged model and the model with its adapter",
            where=where,
            remedy="name as targets only layers that the model calls, and calls by nothing but their forward pass",
        )
    return model, gap


def _digests(model: nn.Module) -> dict[str, str]:
    """A digest of each parameter, by name."""
    return {name: _digest(parameter.detach()) for name, parameter in model.named_parameters()}


def _digest(tensor: Tensor) -> str:
    return hashlib.blake2b(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()


def _with_adapter(model: nn.Module) -> Iterator[nn.Module]:
    return (module for module in list(model.modules()) if "lora_A" in module._parameters)


def _add_update(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    given = inputs[0]
    if layer.weight.dtype != layer.lora_A.dtype:
        # A base that is stored in half precision, with an adapter in single precision.
        given = given.to(layer.lora_A.dtype)
    # In place: further copies, which live for a moment only, would leave holes in the memory of the process.
    update = F.linear(F.linear(given, layer.lora_A), layer.lora_B).mul_(layer.lora_scale)
    return update.add_(output).to(output.dtype)


def _sizes(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear layer."""
    shape = layer.get_parameter("weight").shape
    return (shape[0], shape[1]) if is_transposed(layer) else (shape[1], shape[0])


def _all(model: nn.Module, layers: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """All layers but the output layer of a language model, which PEFT leaves out too."""
    head = embedding_layer(model, "output")
    chosen = {path: layer for path, layer in layers.items() if layer is not head}
    if not chosen:
        raise SpecError(
            "the model has no linear layer that can have an adapter",
            where=f"model ({type(model).__name__})",
            allowed="linear layers with trainable weights that no other layer shares",
            remedy="leave the adapter out",
        )
    return chosen


def _named(layers: dict[str, nn.Module], targets: str | tuple[str, ...], where: str) -> dict[str, nn.Module]:
    patterns = (targets,) if isinstance(targets, str) else targets
    for pattern in patterns:
        if not any(_matches(path, pattern) for path in layers):
            raise SpecError(
                f"{pattern!r} matches no linear layer with trainable weights of its own",
                where=f"{where}.targets",
                allowed=f"{ALL}, or the last steps of {', '.join(list(layers)[:12]) or 'none'}",
                remedy=nearest(pattern, {path.rpartition(".")[2] for path in layers}),
            )
    if not patterns:
        raise SpecError("found none", where=f"{where}.targets", allowed=f"{ALL}, or paths of linear layers")
    return {path: layer for path, layer in layers.items() if any(_matches(path, pattern) for pattern in patterns)}


def _matches(path: str, pattern: str) -> bool:
    wanted = pattern.split(".")
    steps = path.split(".")[-len(wanted) :]
    return len(steps) == len(wanted) and all(map(fnmatchcase, steps, wanted))
