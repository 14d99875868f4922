"""Folders that Hugging Face's `save_pretrained` wrote: their configuration, their weights, and what is refused."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.base.errors import MissingError, SpecError
from expunge.base.inputs import input_digest
from expunge.base.record import address
from expunge.core import checkpoint
from expunge.core.hf_quantised import KEY as QUANTISATION
from expunge.core.hf_quantised import plain_weights, require_readable
from expunge.core.modules import half_precision

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
"""Names of models on the hub."""
ASIDE = re.compile(r"_.*|.*drop.*|.*dtype|.*token_id|transformers_version|architectures|use_cache|id2label|label2id")
"""Keys of a configuration that change no output of a trained model."""


def transformers_library() -> Any:
    """The package transformers.

    Raises:
        MissingError: It is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise MissingError(
            "transformers is not installed",
            where="model (hf)",
            remedy="install the extra hf: pip install -e '.[hf]' in the clone",
        ) from None
    return transformers


def folder_of(name: str, where: str) -> Path:
    """The folder of the model.

    Raises:
        MissingError: There is neither such a folder nor such a model in the cache.
        SpecError: The folder has no configuration.
    """
    path = Path(name)
    if path.is_dir():
        require_config(path, where)
        return path
    if not NAME.fullmatch(name):
        raise MissingError(f"there is no folder {name}", where=where, remedy="check the path")
    transformers_library()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):
        raise MissingError(
            f"there is neither a folder {name!r} nor a model of that name in the local cache",
            where=where,
            remedy=f"check the path, or download it: hf download {name}",
        ) from None


def require_config(folder: Path, where: str) -> None:
    """Refuse a folder without a configuration.

    Raises:
        SpecError: It has none.
    """
    if not (folder / CONFIG).is_file():
        adapter = (folder / ADAPTER_CONFIG).is_file()
        raise SpecError(
            f"{folder} holds no {CONFIG}",
            where=where,
            allowed="a folder that save_pretrained wrote",
            remedy="it is an adapter: in a spec, [model] takes its base as path and this folder as adapter; elsewhere, "
            "merge the adapter first: model.merge_and_unload().save_pretrained(...)"
            if adapter
            else "",
        )


def require_same_config(module: nn.Module, folder: Path, where: str) -> None:
    """Refuse a folder whose configuration is not that of the module.

    Settings that change no output of a trained model, such as dropout, may differ.

    Raises:
        SpecError: The module is not from transformers, or a setting differs; the message names the first.
    """
    require_config(folder, where)
    if not hasattr(module, "config") or not hasattr(type(module), "from_pretrained"):
        raise SpecError(
            f"{folder} is a folder, and {type(module).__name__} is not a model of transformers",
            where=where,
            allowed="a safetensors file for such a model",
        )
    own, given = (_facts(config) for config in (module.config, config_of(folder, str(folder), where)))
    for key in sorted(own.keys() | given.keys()):
        if own.get(key) != given.get(key):
            raise SpecError(
                f"its configuration has {key} = {given.get(key)!r}, the spec's model has {own.get(key)!r}",
                where=where,
                allowed="a model with the configuration of the spec's model",
                remedy="check the folder, or name its original in the spec",
            )


def load_folder(module: nn.Module, folder: Path, where: str) -> nn.Module:
    """Load the weights of a folder that `save_pretrained` wrote, also in several files, into a module, in place.

    Raises:
        SpecError: The configurations differ, or the folder does not hold exactly the module's weights as safetensors.
    """
    require_same_config(module, folder, where)
    read, lacking, surplus = loaded(type(module), copy.deepcopy(module.config), str(folder), where)
    if lacking:
        raise incomplete(where, str(folder), lacking)
    if surplus:
        finding = f"{folder} also holds {surplus[0]}, which {type(module).__name__} does not have"
        raise SpecError(finding, where=where, allowed="exactly the weights of the spec's model")
    return checkpoint.restore(module, checkpoint.dump(read), where)


def _facts(config: Any) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if not ASIDE.fullmatch(key)}


def config_of(folder: Path, name: str, where: str) -> Any:
    """The folder's configuration, without what it says of quantisation; `name` and `where` are for messages.

    Raises:
        SpecError: transformers cannot use it, it names code of its repository, or its weights are quantised by
            another library than bitsandbytes.
    """
    require_readable(read_table(folder / CONFIG).get(QUANTISATION), name, where)
    from_pretrained = transformers_library().AutoConfig.from_pretrained
    try:
        config = quietly(where, name, lambda: from_pretrained(folder, local_files_only=True, trust_remote_code=False))
        # Weights are used, and saved, in single precision.
        config.__dict__.pop(QUANTISATION, None)
        return config
    except SpecError:
        if "auto_map" not in read_table(folder / CONFIG):
            raise
    raise SpecError(
        f"the model in {name} is code of its repository, which is never run",
        where=where,
        allowed="a model whose class is part of transformers",
        remedy="read that code; then write a function of yours that builds the model, and give its weights: "
        'name = "my_models:build", weights = "mine.safetensors"',
    )


def read_table(path: Path) -> dict[str, Any]:
    """The object in a JSON file of the folder; empty if there is none."""
    try:
        table = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def loaded(family: Any, config: Any, name: str, where: str) -> tuple[nn.Module, list[str], list[str]]:
    """The configuration's module with the checkpoint's weights, in training mode.

    Returns:
        The module; the tensors that the checkpoint lacks; those that it holds in addition.
    """
    folder = folder_of(name, where)
    if not list(folder.glob("*.safetensors")):
        raise SpecError(
            f"{name} holds no weights as safetensors",
            where=where,
            allowed="weights that save_pretrained wrote; a pickle can run code when it is loaded",
        )
    source: Path | None = folder
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
    if read_table(folder / CONFIG).get(QUANTISATION):
        skeleton = _skeleton(family, config)
        source, family, options = None, type(skeleton), {"state_dict": plain_weights(folder, skeleton, where)}
        checkpoint.say_once(f"{where}: the weights have 8 or 4 bits; their values are used, and saved, in float32")
    module, report = quietly(
        where,
        name,
        lambda: family.from_pretrained(
            source, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **options
        ),
    )
    mismatched = [entry[0] if isinstance(entry, tuple) else entry for entry in report["mismatched_keys"]]
    lacking = sorted({*report["missing_keys"], *mismatched})
    narrow = half_precision(module)
    if narrow:
        checkpoint.say_once(f"{where}: {narrow}; all weights are used as float32, in which small steps count")
    return module.float().train(), lacking, sorted(report["unexpected_keys"])


def _skeleton(family: Any, config: Any) -> nn.Module:
    """A model of the configuration without numbers, of an automatic class or of a model's own."""
    with torch.device("meta"):
        model: nn.Module = (getattr(family, "from_config", None) or family._from_config)(copy.deepcopy(config))
    return model


def incomplete(where: str, name: str, lacking: list[str]) -> SpecError:
    """The error for a folder that lacks tensors of the model."""
    more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
    return SpecError(
        f"{name} lacks {lacking[0]}{more}, or holds it in another size",
        where=where,
        allowed="weights of the configuration",
    )


def quietly(where: str, name: str, act: Callable[[], Any]) -> Any:
    """Call a function without progress bars and reports; any failure becomes an error about the folder."""
    with _silence():
        try:
            return act()
        except Exception as error:  # transformers raises many types for files that it cannot use
            reason = str(error).strip().partition("\n")[0]
            raise SpecError(f"transformers cannot use {name} ({type(error).__name__}: {reason})", where=where) from None


@contextmanager
def _silence() -> Iterator[None]:
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def content_of(folder: Path) -> str:
    """Content address of the folder's configuration and weights."""
    return address({name: input_digest(file) for name, file in files_of(folder).items()})


def files_of(folder: Path) -> dict[str, Path]:
    """The files of a folder that decide what the model is, by name."""
    return {file.name: file for file in (folder / CONFIG, *sorted(folder.glob("*.safetensors")))}
