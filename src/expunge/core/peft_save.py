"""Gives an adapter again after it was merged: as a folder that PEFT loads on the base model, or put on that model.

An adapter is merged before it is stored. The difference between the merged weights and those of the base has the
adapter's rank, so its factors give the adapter again: not the same A and B, but the same product B A.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from expunge.base.record import write_file
from expunge.core.adapter import Adapter, attach, linear_layers
from expunge.core.hf_folder import ADAPTER_CONFIG
from expunge.core.modules import is_transposed
from expunge.core.peft_folder import WEIGHTS
from expunge.core.seeding import forked
from expunge.numerics.precision import wide

OVERSAMPLED = 8
"""Directions beyond the rank that the randomised factorisation looks at (Halko et al., 0909.4061)."""


def save_adapter(merged: nn.Module, base: nn.Module, adapter: Adapter, folder: Path, name: str) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`.

    Args:
        merged: The model with the adapter in its weights.
        base: The model that the adapter was trained on.
        adapter: Its rank and scale.
        folder: An existing folder.
        name: What users call the base model: a path, or a name in the cache.
    """
    tensors: dict[str, Tensor] = {}
    targets, transposed = [], False
    for path, first, last in _of_layers(merged, base, adapter):
        transposed = is_transposed(base.get_submodule(path))
        targets.append(path)
        tensors[f"base_model.model.{path}.lora_A.weight"] = first
        tensors[f"base_model.model.{path}.lora_B.weight"] = last
    facts = {
        "peft_type": "LORA",
        "base_model_name_or_path": name,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "target_modules": targets,
        "fan_in_fan_out": transposed,
        "bias": "none",
        "inference_mode": True,
    }
    write_file(folder / ADAPTER_CONFIG, json.dumps(facts, indent=1) + "\n")
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def unmerged(merged: nn.Module, base: nn.Module, adapter: Adapter, stored: torch.dtype) -> nn.Module:
    """The base with the adapter beside its weights, as PEFT runs the two.

    Args:
        merged: The model with the adapter in its weights.
        base: The model that the adapter was trained on; changed in place.
        adapter: Its rank, scale and targets.
        stored: The type in which the base's weights are stored. The adapter's own weights stay in single precision.
    """
    factors = list(_of_layers(merged, base, adapter))
    attach(base, adapter, 0)
    for parameter in base.parameters():
        parameter.data = parameter.data.to(stored) if parameter.is_floating_point() else parameter.data
    for path, first, last in factors:
        layer = base.get_submodule(path)
        layer.lora_A, layer.lora_B = (nn.Parameter(factor, requires_grad=False) for factor in (first, last))
    return base


def _of_layers(merged: nn.Module, base: nn.Module, adapter: Adapter) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Path, A and B of each layer that the adapter has changed, in the base's precision and on its device."""
    changed = linear_layers(merged)
    for path, layer in linear_layers(base).items():
        weight = layer.get_parameter("weight").detach()
        delta = wide(changed[path].get_parameter("weight").detach() - weight)
        if delta.any():
            first, last = _factors(delta.T if is_transposed(layer) else delta, adapter.rank)
            yield path, first.to(weight), (last * (adapter.rank / adapter.alpha)).to(weight)


def _factors(delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A `[rank, inputs]` and B `[outputs, rank]` with B A = delta `[outputs, inputs]`, which has at most this rank."""
    with forked(0):  # the factorisation draws directions
        left, sizes, right = torch.svd_lowrank(delta.cpu(), q=min(rank + OVERSAMPLED, *delta.shape), niter=2)
    missing = max(rank - len(sizes), 0)
    first, last = right.T[:rank], (left * sizes)[:, :rank]
    pad = torch.nn.functional.pad
    return pad(first, (0, 0, 0, missing)).contiguous(), pad(last, (0, missing)).contiguous()
