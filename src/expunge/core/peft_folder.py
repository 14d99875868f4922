"""Adapter folders that PEFT's `save_pretrained` wrote: they are put on their base model and merged into it.

The user's model is base and adapter together. The sum is made in single precision, and the result is a module of the
base's class, so nothing after this knows of PEFT.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from expunge.base.errors import MissingError, SpecError
from expunge.core.hf_folder import ADAPTER_CONFIG, quietly

WEIGHTS = "adapter_model.safetensors"


def adapter_files(name: str, where: str) -> dict[str, Path]:
    """Configuration and weights of an adapter, by name.

    Raises:
        MissingError: There is no such folder.
        SpecError: The folder holds no adapter, or its weights are a pickle.
    """
    folder = Path(name)
    if not folder.is_dir():
        raise MissingError(f"there is no folder {name}", where=where, remedy="check the path")
    for file in (ADAPTER_CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise SpecError(
                f"{folder} holds no {file}",
                where=where,
                allowed="a folder that PEFT's save_pretrained wrote; a pickle can run code when it is loaded",
            )
    return {file: folder / file for file in (ADAPTER_CONFIG, WEIGHTS)}


def with_adapter(module: nn.Module, name: str, where: str) -> nn.Module:
    """The module with the adapter of this folder merged into its weights; in place.

    Args:
        module: The base model, in single precision.
        name: The adapter's folder.
        where: Name of the setting, for messages.

    Raises:
        MissingError: PEFT is not installed, or there is no such folder.
        SpecError: The folder holds no low-rank adapter, or one for another model.
    """
    files, peft = adapter_files(name, where), _peft_library()
    stored = _names(files[WEIGHTS], where)
    kind = quietly(where, name, lambda: peft.PeftConfig.from_pretrained(name)).peft_type.value
    if kind != "LORA":
        raise SpecError(f"{name} holds an adapter of the kind {kind}", where=where, allowed="LORA, which can be merged")
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PEFT and transformers about each other's versions
        try:
            model = peft.PeftModel.from_pretrained(module, name)
        except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
            raise _other_base(name, where, str(error).strip().splitlines()[-1].strip()) from None
        differing = stored ^ set(peft.get_peft_model_state_dict(model))
        if differing:
            raise _other_base(name, where, f"{min(differing)} has no counterpart")
        merged: nn.Module = model.merge_and_unload()
    for path, parameter in merged.named_parameters():
        parameter.requires_grad_(path in trained)
    return merged.float()


def _names(file: Path, where: str) -> set[str]:
    try:
        with safe_open(file, framework="pt") as tensors:
            return set(tensors.keys())
    except SafetensorError as error:
        finding = f"not a complete safetensors file ({error})"
        raise SpecError(finding, where=where, remedy="save or copy it again") from None


def _other_base(name: str, where: str, reason: str) -> SpecError:
    return SpecError(
        f"the adapter {name} does not fit the model ({reason})",
        where=where,
        allowed="an adapter that was trained on the model at `path`",
        remedy=f"name as path the model that {ADAPTER_CONFIG} calls base_model_name_or_path",
    )


def _peft_library() -> Any:
    try:
        import peft
    except ImportError:
        raise MissingError(
            "peft is not installed",
            where="model.adapter",
            remedy="install the extra hf: pip install -e '.[hf]' in the clone",
        ) from None
    return peft
