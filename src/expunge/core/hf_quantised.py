"""Folders whose weights bitsandbytes has stored in 8 or 4 bits, as numbers in single precision; others are refused.

    8 bits    W[i, j] = code[i, j] scale[i] / 127
    4 bits    W = table[code] scale[block], in blocks of the flattened matrix; table is NF4's or FP4's
              scales may have codes of their own: scale = table2[code2] scale2[block2] + offset

Codes, tables and scales are in the safetensors, so bitsandbytes itself is not needed. Its version 0.50.2 gives other
numbers on the CPU, wrong ones, where rows are no multiple of a block. Imported, it may fetch code from the hub.

Steps of training are smaller than the distance between such weights. So a quantised model is unlearned, attacked and
audited as these numbers, and saved as them, too. It needs the memory of a plain model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.core.modules import is_transposed

KEY = "quantization_config"
"""The entry of a configuration that says how weights are stored."""
READ = "bitsandbytes"
STATE = ".quant_state.bitsandbytes__"
"""Behind the name of a weight of 4 bits; the kind of its table follows."""
PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", STATE)


def require_readable(facts: Any, name: str, where: str) -> None:
    """Refuse weights that another library has quantised.

    Args:
        facts: The entry `quantization_config` of the configuration; nothing for plain weights.
        name: The folder's name, for messages.
        where: The setting that names it.

    Raises:
        SpecError: Another library has.
    """
    how = str(facts.get("quant_method", "a library")) if isinstance(facts, dict) else "a library"
    if facts and how != READ:
        raise SpecError(
            f"the weights of {name} are quantised by {how}",
            where=where,
            allowed="weights of 16 bits or more, or what bitsandbytes stored",
            remedy="name the folder from which it was quantised, unlearn by an adapter to save memory, and quantise "
            "the result; or where the library is installed: from_pretrained(...).dequantize().save_pretrained(...)",
        )


def plain_weights(folder: Path, skeleton: nn.Module, where: str) -> dict[str, Tensor]:
    """The weights of a folder that bitsandbytes quantised, by the names in its files.

    Args:
        folder: Holds safetensors, one file or several.
        skeleton: A model of the plain architecture; its tensors may be on `meta`.
        where: Name of the setting, for messages.

    Raises:
        SpecError: Scales or tables are missing, or codes are in the order of an old kernel.
    """
    stored: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        stored |= load_file(file)
    turned = [path for path, layer in skeleton.named_modules() if is_transposed(layer)]
    try:
        return {name: _in_place(name, _number(stored, name), turned, stored) for name in stored if _is_weight(name)}
    except (KeyError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise SpecError(f"{folder} holds a quantised weight that cannot be read ({reason})", where=where) from None


def _is_weight(name: str) -> bool:
    return not (name.endswith((".SCB", ".weight_format")) or any(part in name for part in PARTS))


def _number(stored: Mapping[str, Tensor], name: str) -> Tensor:
    weight = stored[name]
    states = [key for key in stored if key.startswith(name + STATE)]
    if states:
        return _of_4_bits(stored, name, json.loads(bytes(stored[states[0]].tolist())))
    if weight.dtype != torch.int8:
        return weight
    layer = name.removesuffix("weight")
    form = stored.get(f"{layer}weight_format")
    if form is not None and form.any():
        raise ValueError(f"{name} has the order of an old kernel; load it with bitsandbytes and save it again")
    return weight.float() * (stored[f"{layer}SCB"].float()[:, None] / 127)


def _of_4_bits(stored: Mapping[str, Tensor], name: str, state: Mapping[str, Any]) -> Tensor:
    scales = stored[f"{name}.absmax"]
    if scales.dtype == torch.uint8:
        outer = _per_block(stored[f"{name}.nested_absmax"], state["nested_blocksize"], len(scales))
        scales = stored[f"{name}.nested_quant_map"][scales.long()] * outer + state["nested_offset"]
    packed = stored[name].flatten().view(torch.uint8)
    codes = torch.stack([packed >> 4, packed & 15], 1).flatten().long()
    values = stored[f"{name}.quant_map"][codes] * _per_block(scales, state["blocksize"], len(codes))
    shape = torch.Size(state["shape"])
    # An odd number of values is filled up with one code.
    return values[: shape.numel()].view(shape)


def _per_block(scales: Tensor, size: int, count: int) -> Tensor:
    """Each scale as often as its block has values; the last block may be short."""
    return scales.float().repeat_interleave(size)[:count]


def _in_place(name: str, value: Tensor, turned: list[str], stored: Mapping[str, Tensor]) -> Tensor:
    """The value in the layout of the plain layer: quantised weights are `[outputs, inputs]` everywhere."""
    if value is stored[name]:
        return value
    own = name.removesuffix(".weight")
    # A backbone's file may lack the first step of a path, and a whole model's may have one more.
    same = any(f".{a}".endswith(f".{b}") for path in turned for a, b in ((own, path), (path, own)))
    return value.T.contiguous() if same else value
