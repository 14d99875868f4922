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

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import nn

from expunge.base.errors import MissingError, SpecError
from expunge.base.inputs import input_digest
from expunge.base.record import address
from expunge.core.contracts import Architecture
from expunge.core.data import Data
from expunge.models._images import image_shape

CONFIG = "config.json"
NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
"""Names of models on the hub."""


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
            if folder is not None and isinstance(settings.get(key), str) and (folder / settings[key]).is_dir():
                settings[key] = str(folder / settings[key])
        return super().from_table(settings, where=where, folder=folder)

    def input_files(self) -> dict[str, dict[str, Path]]:
        """Configuration and weights of the model and of its base.

        Raises:
            MissingError: There is no such folder.
        """
        named = {"path": self.path} | ({"base": self.base} if self.base else {})
        return {field: _read(_folder(name, field)) for field, name in named.items()}

    def fingerprint(self) -> dict[str, Any]:
        """Digests of configuration and base, on which retrained models depend; without the model's own weights."""
        facts = {"path": input_digest(_folder(self.path, "path") / CONFIG), "transformers": _transformers().__version__}
        facts |= {"base": _content(_folder(self.base, "base"))} if self.base else {}
        return {**super().fingerprint(), "settings": facts}

    def original_digest(self) -> str:
        """Content address of the folder's configuration and weights."""
        return _content(_folder(self.path, "path"))

    def original(self, data: Data) -> nn.Module:
        """The folder's model.

        Raises:
            MissingError: transformers is not installed, or the folder or the cached model does not exist.
            SpecError: The model is incomplete, or does not fit the data.
        """
        module, lacking = _loaded(self._config(data), self.path, "path", data)
        if lacking:
            raise _incomplete("path", self.path, lacking)
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
            fresh: nn.Module = _quietly("path", self.path, lambda: _family(data).from_config(config))
            return fresh.float().train()
        module, lacking = _loaded(config, self.base, "base", data)
        # A fine-tuned backbone may get a new classifier. Any other missing tensor would stay random.
        inner = f"{getattr(module, 'base_model_prefix', '')}."
        lost = [name for name in lacking if name.startswith(inner) or data.has_tokens]
        if lost:
            raise _incomplete("base", self.base, lost)
        return module

    def _config(self, data: Data) -> Any:
        """The folder's configuration.

        Raises:
            SpecError: The configuration is for data of another size.
        """
        folder = _folder(self.path, "path")
        transformers = _transformers()
        config = _quietly(
            "path",
            self.path,
            lambda: transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False),
        )
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


def _folder(name: str, key: str) -> Path:
    """The folder of the model.

    Raises:
        MissingError: There is neither such a folder nor such a model in the cache.
        SpecError: The folder has no configuration.
    """
    path, where = Path(name), f"model.{key}"
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise SpecError(f"{name} holds no {CONFIG}", where=where, allowed="a folder that save_pretrained wrote")
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


def _loaded(config: Any, name: str, key: str, data: Data) -> tuple[nn.Module, list[str]]:
    """The configuration's module with the checkpoint's weights, in training mode, and the tensors that it lacks."""
    folder = _folder(name, key)
    if not list(folder.glob("*.safetensors")):
        raise SpecError(
            f"{name} holds no weights as safetensors",
            where=f"model.{key}",
            allowed="weights that save_pretrained wrote; a pickle can run code when it is loaded",
        )
    options = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
    module, report = _quietly(
        key,
        name,
        lambda: _family(data).from_pretrained(
            folder, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **options
        ),
    )
    mismatched = [entry[0] if isinstance(entry, tuple) else entry for entry in report["mismatched_keys"]]
    return module.float().train(), sorted({*report["missing_keys"], *mismatched})


def _incomplete(key: str, name: str, lacking: list[str]) -> SpecError:
    more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
    return SpecError(
        f"{name} lacks {lacking[0]}{more}, or holds it in another size",
        where=f"model.{key}",
        allowed="weights of the configuration in model.path",
    )


def _check_size(config: Any, data: Data) -> None:
    """Refuse sizes that transformers would report only in a forward pass, or not at all."""
    wanted: list[tuple[str, int]] = []
    if data.has_tokens:
        wanted = [("vocab_size", len(data.labels))]
        context = getattr(config, "max_position_embeddings", None)
        if context is not None and context < data.shape[0]:
            finding = f"texts have {data.shape[0]} tokens"
            raise SpecError(finding, where="model (hf)", allowed=f"at most {context}, the model's positions")
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


def _other_size(name: str, size: Any, data: str) -> SpecError:
    return SpecError(
        f"the model's {name} is {size}, the data have {data}", where="model (hf)", allowed="a model made for the data"
    )


def _quietly(key: str, name: str, act: Callable[[], Any]) -> Any:
    """Call a function without progress bars and reports; any failure becomes an error about the folder."""
    with _silence():
        try:
            return act()
        except Exception as error:  # transformers raises many types for files that it cannot use
            reason = str(error).strip().partition("\n")[0]
            raise SpecError(
                f"transformers cannot use {name} ({type(error).__name__}: {reason})", where=f"model.{key}"
            ) from None


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
    return address({name: input_digest(file) for name, file in _read(folder).items()})


def _read(folder: Path) -> dict[str, Path]:
    """The files of a folder that decide what the model is, by name."""
    return {file.name: file for file in (folder / CONFIG, *sorted(folder.glob("*.safetensors")))}
