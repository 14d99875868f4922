"""A Hugging Face model from a folder that `save_pretrained` wrote, or from the local cache; nothing is downloaded.

The folder holds *the* model: its weights are the original model, and the verdict is about this model alone. References
are trained by the spec's recipe. They start from fresh weights of the folder's configuration or, if the model was
fine-tuned, from the checkpoint before fine-tuning (`base`). With `base` alone, the original is trained from it, too.
For images the model is an image classifier, for texts with a target per token a causal language model, for texts with
one class each an encoder with a classifier. Inputs with names, such as `input_ids` and `attention_mask`, are passed by
name.

All weights are converted to single precision, because in half precision an optimiser's small steps vanish; a line on
stderr says so. transformers itself reads the folder, because it stores some weights under other names than those of
their modules. After that, weights are stored as for any other model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.base.inputs import input_digest
from expunge.base.record import address
from expunge.core.contracts import Architecture
from expunge.core.data import Data
from expunge.core.hf_folder import (
    CONFIG,
    NAME,
    config_of,
    content_of,
    files_of,
    folder_of,
    incomplete,
    loaded,
    quietly,
    transformers_library,
)
from expunge.core.peft_folder import adapter_files, with_adapter
from expunge.core.texts import not_causal, refuse_length
from expunge.models._images import image_shape


@dataclass(frozen=True)
class HF(Architecture):
    """Your own model from transformers, for images or texts."""

    version: ClassVar[int] = 2

    path: str | None = None
    """Folder that `save_pretrained` wrote, relative to the spec file; or the model's name in the local cache. Without
    it, originals are trained from `base`, as references are."""
    base: str | None = None
    """Checkpoint from which training starts, in the same form as `path`; by default fresh weights, and with an adapter
    the model at `path`."""
    adapter: str | None = None
    """Folder of an adapter that PEFT's `save_pretrained` wrote. The model is then the one at `path` with the adapter
    merged."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path is None and (self.adapter is not None or self.base is None):
            finding = "'path' is missing" + (
                ", and an adapter needs the model that it was trained on" if self.base else ""
            )
            raise SpecError(
                finding,
                where="model (hf)",
                allowed="`path`, the model that has to forget; or `base` alone, from which originals are trained",
            )

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
        if folder is not None and isinstance(settings.get("adapter"), str):
            settings["adapter"] = str(folder / settings["adapter"])
        return super().from_table(settings, where=where, folder=folder)

    def settings(self) -> dict[str, Any]:
        """Every field with its value; without an adapter as in records that know of none."""
        return {name: value for name, value in super().settings().items() if name != "adapter" or value is not None}

    def input_files(self) -> dict[str, dict[str, Path]]:
        """Configuration and weights of the model, of its base and of its adapter.

        Raises:
            MissingError: There is no such folder.
            SpecError: A folder holds something else.
        """
        named = {"path": self.path, "base": self.base}
        files = {field: files_of(folder_of(name, f"model.{field}")) for field, name in named.items() if name}
        return files | ({"adapter": adapter_files(self.adapter, "model.adapter")} if self.adapter else {})

    @property
    def start(self) -> str | None:
        """Checkpoint from which retrained models start; `None` for fresh weights."""
        return self.base or (self.path if self.adapter else None)

    def fingerprint(self) -> dict[str, Any]:
        """Digests of configuration and base, on which retrained models depend; without the model's own weights."""
        facts = {
            "path": input_digest(folder_of(*self._own) / CONFIG),
            "transformers": transformers_library().__version__,
        }
        facts |= {"base": content_of(folder_of(self.start, "model.base"))} if self.start else {}
        return {**super().fingerprint(), "settings": facts}

    def original_digest(self) -> str | None:
        """Content address of configuration and weights of the folder and of the adapter; `None` without a `path`."""
        if self.path is None:
            return None
        digest = content_of(folder_of(self.path, "model.path"))
        if self.adapter is None:
            return digest
        files = adapter_files(self.adapter, "model.adapter")
        return address({"path": digest} | {name: input_digest(file) for name, file in files.items()})

    def original(self, data: Data) -> nn.Module:
        """The folder's model, with the adapter merged if there is one.

        Raises:
            MissingError: transformers or PEFT is not installed, or a folder or the cached model does not exist.
            SpecError: The model is incomplete, or does not fit the data or the adapter.
        """
        name, where = self._own
        module, lacking, _ = loaded(_family(data), self._config(data), name, where)
        if lacking:
            raise incomplete(where, name, lacking)
        return with_adapter(module, self.adapter, "model.adapter") if self.adapter else module

    def __call__(self, data: Data) -> nn.Module:
        """The model from which retraining starts, with fresh weights or those of the base.

        The base gets a new head if its own head does not fit.

        Raises:
            MissingError: transformers is not installed, or the folder or the cached model does not exist.
            SpecError: The configuration does not fit the data, or the base does not fit the configuration.
        """
        config = self._config(data)
        if self.start is None:
            fresh: nn.Module = quietly("model.path", self._own[0], lambda: _family(data).from_config(config))
            return fresh.float().train()
        module, lacking, _ = loaded(_family(data), config, self.start, "model.base")
        # A fine-tuned backbone may get a new classifier. Any other missing tensor would stay random.
        inner = f"{getattr(module, 'base_model_prefix', '')}."
        lost = [name for name in lacking if name.startswith(inner) or data.has_tokens]
        if lost:
            raise incomplete("model.base", self.start, lost)
        return module

    @property
    def _own(self) -> tuple[str, str]:
        """The folder whose configuration the model has, and the setting that names it."""
        return (self.path, "model.path") if self.path is not None else (str(self.base), "model.base")

    def _config(self, data: Data) -> Any:
        """The folder's configuration.

        Raises:
            SpecError: The configuration is for data of another size.
        """
        name, where = self._own
        config = config_of(folder_of(name, where), name, where)
        _check_size(config, data, name)
        if getattr(config, "use_cache", False):
            config.use_cache = False  # the cache is for generation only
        return config


def _family(data: Data) -> Any:
    library = transformers_library()
    if data.has_tokens:
        return library.AutoModelForCausalLM
    texts = _token_ids(data) is not None
    return library.AutoModelForSequenceClassification if texts else library.AutoModelForImageClassification


def _token_ids(data: Data) -> Tensor | None:
    """Token ids `[1, t]` of the first text, if the examples are texts; a mapping holds them beside a mask."""
    inputs = data.example.get("input_ids") if isinstance(data.example, Mapping) else data.example
    tokens = isinstance(inputs, Tensor) and inputs.ndim == 2 and not inputs.is_floating_point()
    return inputs if tokens else None


def _beside(folder: Path, name: str) -> bool:
    """Whether a name in a spec means a folder, counted from the spec's folder, and not a model in the cache."""
    path = folder / name
    return path.is_dir() or not NAME.fullmatch(name) or ("/" in name and path.parent.is_dir())


def _check_size(config: Any, data: Data, name: str) -> None:
    """Refuse sizes that transformers would report only in a forward pass, or not at all; `name` is the model's."""
    wanted: list[tuple[str, int]] = []
    tokens = _token_ids(data)
    if tokens is not None:
        refuse_length(config, tokens.shape[1], "model (hf)")
    if data.has_tokens:
        if getattr(config, "is_encoder_decoder", False):
            raise not_causal(config.model_type, "has an encoder and a decoder")
        _check_vocabulary(getattr(config, "vocab_size", None), data, name)
    elif tokens is not None:
        wanted = [("num_labels", len(data.labels))]
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


def _check_vocabulary(size: int | None, data: Data, name: str) -> None:
    """Refuse a vocabulary that is not that of the data. It is often padded beyond the tokens of its tokenizer."""
    labels = len(data.labels)
    if size in (None, labels):
        return
    if data.tokenizer is not None:
        remedy = f'give the data the model\'s own tokenizer: under [data], set tokenizer = "{name}"'
    elif size is not None and size > labels:
        remedy = (
            f'set [objective] name = "language_modelling", vocabulary = {size}; or give the data `labels`, a name for '
            "each output, also for those that pad the vocabulary"
        )
    else:
        remedy = "use the tokenizer that the model was trained with"
    raise SpecError(
        f"the model's vocab_size is {size}, the data have {labels} labels",
        where="model (hf)",
        allowed="as many labels as the model has outputs",
        remedy=remedy,
    )


def _other_size(name: str, size: Any, data: str) -> SpecError:
    return SpecError(
        f"the model's {name} is {size}, the data have {data}", where="model (hf)", allowed="a model made for the data"
    )
