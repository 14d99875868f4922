"""Writes a model of transformers as a folder that `from_pretrained` and servers load, with its tokenizer.

Weights are written as they were audited, in float32, and read again before the folder counts: the file that ships is
the file that was audited, bit for bit. The rest comes from the user's own folder: the configuration's settings, the
generation configuration, and the files of tokenizers and of image processors, by their known names. No other file is
copied, no link is followed out of the user's folder, and no code is copied.
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from expunge.base.errors import SpecError
from expunge.core import checkpoint
from expunge.core.hf_folder import CONFIG, config_of, loaded, quietly

SHARD = 5 * 10**9
"""Bytes of a file of weights, above which they are written in several files."""
GENERATION = "generation_config.json"
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip
"""Names of the files in which tokenizers are stored."""
PROCESSOR = ("preprocessor_config.json", "processor_config.json")
"""Names of the files in which image processors are stored."""


def is_pretrained(module: nn.Module) -> bool:
    """Whether a module is a model of transformers, which can write itself as a folder."""
    return hasattr(module, "config") and hasattr(type(module), "from_pretrained")


def save_folder(module: nn.Module, folder: Path, source: Path | None, where: str, shard: int = SHARD) -> None:
    """Write weights, configurations and tokenizer into a folder, and check that they give the same model again.

    Args:
        module: The model, on any device; its configuration gets the setting `use_cache` of the source.
        folder: An empty folder.
        source: The user's own folder of the model, from which everything but the weights comes; `None` if there is
            none, and the module's configuration is all that is known.
        where: The option that asks for the folder, for messages.
        shard: Largest size of a file of weights in bytes.

    Raises:
        SpecError: The folder would not give the same weights again, because the model holds tensors that its class
            does not have; or transformers cannot write it.
    """
    name = type(module).__name__
    config: Any = module.config
    if source is not None and hasattr(config, "use_cache"):
        # Training needs no cache, and so the module's configuration has none. What generates needs it.
        config.use_cache = getattr(config_of(source, str(source), where), "use_cache", config.use_cache)
    saved: Any = module
    quietly(where, name, lambda: saved.save_pretrained(folder, max_shard_size=shard))
    if source is not None:
        for known in (GENERATION, *TOKENIZER, *PROCESSOR):
            _copy(source, known, folder)
    _check(module, folder, where)


def _copy(source: Path, name: str, folder: Path) -> None:
    """Copy a regular file of the user's folder, if it is there; never one outside that a link names."""
    path = source / name
    # The folders of the hub's cache hold links to files of the same model.
    home = source.parents[1] if source.parent.name == "snapshots" else source
    if path.is_file() and path.resolve().is_relative_to(home.resolve()):
        shutil.copyfile(path, folder / name)


def _check(module: nn.Module, folder: Path, where: str) -> None:
    """Refuse a folder that does not give the module's weights again."""
    config = config_of(folder, str(folder / CONFIG), where)
    read, lacking, surplus = loaded(type(module), copy.deepcopy(config), str(folder), where)
    if lacking or surplus or checkpoint.dump(read) != checkpoint.dump(module):
        names = [*surplus, *lacking]
        what = f"{names[0]} is" if names else "its weights are"
        raise SpecError(
            f"{type(module).__name__} would not be the same model when it is read again: {what} not restored",
            where=where,
            allowed="a model that is nothing but its class, without blocks that were added",
            remedy="save the weights alone: a name that ends in .safetensors",
        )
