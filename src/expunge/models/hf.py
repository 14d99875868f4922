"""A Hugging Face model from a folder that `save_pretrained` wrote, or from the local cache; nothing is downloaded.

The folder holds *the* model: its weights are the original model, and the verdict is about this model alone. References
are trained by the spec's recipe. They start from fresh weights of the folder's configuration or, if the model was
fine-tuned, from the checkpoint before fine-tuning (`base`). For images the model is an image classifier, for texts a
causal language model. Both are called with their inputs only.

All weights are converted to single precision, because in half precision an optimiser's small steps vanish. transformers
itself reads the folder, because it stores some weights under other names than those of their modules. After that,
weights are stored as for any other model.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from torch import nn

from expunge.base.errors import MissingError, SpecError
from expunge.base.record import address
from expunge.core import checkpoint
from expunge.core.contracts import Architecture
from expunge.core.data import Data
from expunge.core.texts import not_causal, refuse_length
from expunge.models._images import image_shape

CONFIG = "config.json"
NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
"""Names of models on the hub."""
ASIDE = re.compile(r"_.*|.*drop.*|.*dtype|.*token_id|transformers_version|architectures|use_cache|(id2label|label2id)")
"""Keys of a configuration that change no output of a trained model."""


@dataclass(frozen=True)
class HF(Architecture):
    """Your own model from transformers, for images or texts."""

    path: str
    """Folder that `save_pretrained` wrote, relative to the spec file; or the model's name in the local cache."""
    base: str | None = None
    """Checkpoint from which retrained models start, in the same form as `path`; by default fresh weights."""

    @classmethod
    def from_table(cls, table: Mapping[str, Any], *, where: str, folder: Path | None = None) -> Self:
        """Make the part from a spec's table. A path that is not a folder next to the spec may be a name in the cache.

        Raises:
            SpecError: A key is unknown or missing, or a value does not fit.
        """
        settings = dict(table)
        for key in ("path", "base"):
            if folder is not None and isinstance(settings.get(key), str) and _beside(folder, settings[key]):
                settings[key] = str(folder / settings[key])
        return super().from_table(settings, where=where, folder=folder)

    def fingerprint(self) -> dict[str, Any]:
        """Digests of configuration and base, on which retrained models depend; without the model's own weights."""
        facts = {
            "path": _digest(_folder(self.path, "model.path") / CONFIG),
            "transformers": _transformers().__version__,
        }
        facts |= {"base": _content(_folder(self.base, "model.base"))} if self.base else {}
        return {**super().fingerprint(), "settings": facts}

    def original_digest(self) -> str:
        """Content address of the folder's configuration and weights."""
        return _content(_folder(self.path, "model.path"))

    def original(self, data: Data) -> nn.Module:
        """The folder's model.

        Raises:
            MissingError: transformers is not installed, or the folder or the cached model does not exist.
            SpecError: The model is incomplete, or does not fit the data.
        """
        module, lacking, _ = _loaded(_family(data), self._config(data), self.path, "model.path")
        if lacking:
            raise _incomplete("model.path", self.path, lacking)
        return module

    def __call__(self, data: Data) -> nn.Module:
        """The model from which retraining starts, with fresh weights or those of the base.

        The base gets a new head if its own head does not fit.

        Raises:
            MissingError: transformers is not installed, or the folder or the cached model does not exist.
            SpecError: The configuration does not fit the data, or the base does not fit the configuration.
        """
        config = self._config(data)
        if self.base is None:
            fresh: nn.Module = _quietly("model.path", self.path, lambda: _family(data).from_config(config))
            return fresh.float().train()
        module, lacking, _ = _loaded(_family(data), config, self.base, "model.base")
        # A fine-tuned backbone may get a new classifier. Any other missing tensor would stay random.
        inner = f"{getattr(module, 'base_model_prefix', '')}."
        lost = [name for name in lacking if name.startswith(inner) or data.has_tokens]
        if lost:
            raise _incomplete("model.base", self.base, lost)
        return module

    def _config(self, data: Data) -> Any:
        """The folder's configuration.

        Raises:
            SpecError: The configuration is for data of another size.
        """
        folder = _folder(self.path, "model.path")
        config = _config_of(folder, self.path, "model.path")
        _check_size(config, data)
        if getattr(config, "use_cache", False):
            config.use_cache = False  # the cache is for generation only
        return config


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise MissingError(
            "transformers is not installed",
            where="model (hf)",
            remedy="install the extra hf: pip install -e '.[hf]' in the clone",
        ) from None
    return transformers


def _family(data: Data) -> Any:
    library = _transformers()
    return library.AutoModelForCausalLM if data.has_tokens else library.AutoModelForImageClassification


def _folder(name: str, where: str) -> Path:
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
    _transformers()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):
        raise MissingError(
            f"there is neither a folder {name!r} nor a model of that name in the local cache",
            where=where,
            remedy=f"check the path, or download it: hf download {name}",
        ) from None


def _beside(folder: Path, name: str) -> bool:
    """Whether a name in a spec means a folder, counted from the spec's folder, and not a model in the cache."""
    path = folder / name
    return path.is_dir() or not NAME.fullmatch(name) or ("/" in name and path.parent.is_dir())


def require_config(folder: Path, where: str) -> None:
    """Refuse a folder without a configuration.

    Raises:
        SpecError: It has none.
    """
    if not (folder / CONFIG).is_file():
        adapter = (folder / "adapter_config.json").is_file()
        raise SpecError(
            f"{folder} holds no {CONFIG}",
            where=where,
            allowed="a folder that save_pretrained wrote",
            remedy="merge the adapter first: model.merge_and_unload().save_pretrained(...)" if adapter else "",
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
    own, given = (_facts(config) for config in (module.config, _config_of(folder, str(folder), where)))
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
    loaded, lacking, surplus = _loaded(type(module), module.config, str(folder), where)
    if lacking:
        raise _incomplete(where, str(folder), lacking)
    if surplus:
        finding = f"{folder} also holds {surplus[0]}, which {type(module).__name__} does not have"
        raise SpecError(finding, where=where, allowed="exactly the weights of the spec's model")
    return checkpoint.restore(module, checkpoint.dump(loaded), where)


def _facts(config: Any) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if not ASIDE.fullmatch(key)}


def _config_of(folder: Path, name: str, where: str) -> Any:
    read = _transformers().AutoConfig.from_pretrained
    return _quietly(where, name, lambda: read(folder, local_files_only=True, trust_remote_code=False))


def _loaded(family: Any, config: Any, name: str, where: str) -> tuple[nn.Module, list[str], list[str]]:
    """The configuration's module with the checkpoint's weights, in training mode.

    Returns:
        The module; the tensors that the checkpoint lacks; those that it holds in addition.
    """
    folder = _folder(name, where)
    if not list(folder.glob("*.safetensors")):
        raise SpecError(
            f"{name} holds no weights as safetensors",
            where=where,
            allowed="weights that save_pretrained wrote; a pickle can run code when it is loaded",
        )
    options = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
    module, report = _quietly(
        where,
        name,
        lambda: family.from_pretrained(
            folder, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **options
        ),
    )
    mismatched = [entry[0] if isinstance(entry, tuple) else entry for entry in report["mismatched_keys"]]
    lacking = sorted({*report["missing_keys"], *mismatched})
    return module.float().train(), lacking, sorted(report["unexpected_keys"])


def _incomplete(where: str, name: str, lacking: list[str]) -> SpecError:
    more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
    return SpecError(
        f"{name} lacks {lacking[0]}{more}, or holds it in another size",
        where=where,
        allowed="weights of the configuration",
    )


def _check_size(config: Any, data: Data) -> None:
    """Refuse sizes that transformers would report only in a forward pass, or not at all."""
    wanted: list[tuple[str, int]] = []
    if data.has_tokens:
        if getattr(config, "is_encoder_decoder", False):
            raise not_causal(config.model_type, "has an encoder and a decoder")
        _check_vocabulary(getattr(config, "vocab_size", None), len(data.labels))
        refuse_length(config, data.shape[0], "model (hf)")
    else:
        channels, height, width = image_shape(data, 1, "hf")
        size = getattr(config, "image_size", None)
        pairs = list(size) if isinstance(size, Iterable) else [size, size]
        wanted = [("num_labels", len(data.labels)), ("num_channels", channels)]
        if size is not None and pairs != [height, width]:
            raise _other_size("image_size", size, f"{height} x {width} pixels")
    for name, count in wanted:
        if getattr(config, name, None) not in (None, count):
            raise _other_size(name, getattr(config, name), f"{count}")


def _check_vocabulary(size: int | None, labels: int) -> None:
    """Refuse a vocabulary that is not that of the data. It is often padded beyond the tokens of its tokenizer."""
    if size in (None, labels):
        return
    raise SpecError(
        f"the model's vocab_size is {size}, the data have {labels} labels",
        where="model (hf)",
        allowed="as many labels as the model has outputs",
        remedy=f'set [objective] name = "language_modelling", vocabulary = {size}; or give the data `labels`, a name '
        "for each output, also for those that pad the vocabulary"
        if size is not None and size > labels
        else "use the tokenizer that the model was trained with",
    )


def _other_size(name: str, size: Any, data: str) -> SpecError:
    return SpecError(
        f"the model's {name} is {size}, the data have {data}", where="model (hf)", allowed="a model made for the data"
    )


def _quietly(where: str, name: str, act: Callable[[], Any]) -> Any:
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


def _content(folder: Path) -> str:
    files = [folder / CONFIG, *sorted(folder.glob("*.safetensors"))]
    return address({file.name: _digest(file) for file in files})


def _digest(file: Path) -> str:
    """SHA-256 of a file, cached until the file changes: every stage needs it, and weights are large."""
    facts = file.stat()
    return _digest_of(file, facts.st_size, facts.st_mtime_ns)


@lru_cache
def _digest_of(file: Path, size: int, written: int) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
