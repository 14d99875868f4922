"""An architecture with blocks in its models."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expunge.base.errors import ExpungeError, SpecError
from expunge.blocks._put import inserted, put
from expunge.core.contracts import Architecture
from expunge.core.data import Data
from expunge.core.modules import evaluating
from expunge.core.seeding import forked

PRESERVED = 1e-9
"""Largest change of an output, in double precision, that counts as no change."""


@dataclass(frozen=True)
class Placed:
    """A block, the patterns of the paths behind which it is inserted, and its name in the spec."""

    block: Any
    at: tuple[str, ...]
    name: str

    def settings(self) -> dict[str, Any]:
        """The table of the block in a spec."""
        return {"name": self.name, "at": list(self.at), **self.block.settings()}

    def fingerprint(self) -> dict[str, Any]:
        """Plain data that become part of the keys of stages."""
        return {"at": list(self.at), "block": self.block.fingerprint()}


@dataclass(frozen=True)
class WithBlocks(Architecture):
    """A model family with blocks inserted into each of its models, in their order.

    The weights of the architecture are drawn first, as without blocks; then the weights of each block.
    """

    architecture: Any
    """The model family, or a function that builds a model."""
    placed: tuple[Placed, ...]
    """The blocks and their places."""

    def __post_init__(self) -> None:
        """Nothing to do: architecture and blocks are checked already."""

    @property
    def version(self) -> int:  # type: ignore[override]
        """The version of the architecture."""
        version: int = self.architecture.version
        return version

    def settings(self) -> dict[str, Any]:
        """Settings of the architecture, and the blocks' tables as in a spec."""
        return {**self.architecture.settings(), "block": [placed.settings() for placed in self.placed]}

    def code_files(self) -> list[Path]:
        """Those of the architecture and of its blocks."""
        parts = (self.architecture, *(placed.block for placed in self.placed))
        return [path for part in parts for path in part.code_files()]

    def input_files(self) -> dict[str, dict[str, Path]]:
        """Those of the architecture and of its blocks."""
        files: dict[str, dict[str, Path]] = self.architecture.input_files()
        for i, placed in enumerate(self.placed):
            files = files | {f"block[{i}].{field}": named for field, named in placed.block.input_files().items()}
        return files

    def fingerprint(self) -> dict[str, Any]:
        """Fingerprints of the architecture and of its blocks."""
        return {**self.architecture.fingerprint(), "block": [placed.fingerprint() for placed in self.placed]}

    def original_digest(self) -> str | None:
        """The digest of the architecture's weights; blocks count as settings."""
        is_part = isinstance(self.architecture, Architecture)
        return self.architecture.original_digest() if is_part else None

    def original(self, data: Data) -> nn.Module | None:
        """The user's own model with the blocks in it."""
        module = self.architecture.original(data)
        return None if module is None else self._put(module, data)

    def __call__(self, data: Data) -> nn.Module:
        """A fresh model with the blocks in it.

        Raises:
            SpecError: A block does not fit; the message names its place in the spec.
        """
        return self._put(self.architecture(data), data)

    def _put(self, module: nn.Module, data: Data) -> nn.Module:
        for i, placed in enumerate(self.placed):
            where = f"model.block[{i}]"
            before = set(module.modules())
            outputs = _outputs(module, data) if getattr(placed.block, "preserves", False) else None
            put(module, _named(placed.block, where), placed.at, where=where)
            _require_run(module, data, _added(module, before), where)
            if outputs is not None:
                _require_same(outputs, _outputs(module, data), where)
        return module


def with_blocks(architecture: Any, placed: Sequence[Placed]) -> Any:
    """The architecture with these blocks in its models; without blocks, the architecture itself.

    Args:
        architecture: A model family, or a function of the data.
        placed: The blocks and their places.
    """
    return WithBlocks(architecture, tuple(placed)) if placed else architecture


def _named(block: Any, where: str) -> Any:
    """The block; its errors start with its place in the spec."""

    def call(model: nn.Module, path: str) -> nn.Module | None:
        try:
            module: nn.Module | None = block(model, path)
        except ExpungeError as error:
            raise error.at(where) from None
        return module

    return call


def _added(module: nn.Module, before: set[nn.Module]) -> dict[str, nn.Module]:
    """Modules that a block has added and that must run, by the path at which the model calls them."""
    behind = {block.path: block.module for block in inserted(module) if block not in before}
    wrapped = {part for block in inserted(module) for part in block.modules()}
    new = {path: part for path, part in module.named_modules() if part not in before and part not in wrapped}
    outermost = {path: part for path, part in new.items() if path.rpartition(".")[0] not in new}
    return behind | outermost


def _outputs(module: nn.Module, data: Data) -> Tensor:
    """The model's outputs on two examples, in double precision."""
    double = copy.deepcopy(module).double().eval()
    with torch.no_grad(), forked():
        outputs: Tensor = data.objective.prediction(double, data.batch(data.train[:2]))
        return outputs


def _require_same(before: Tensor, after: Tensor, where: str) -> None:
    """Refuse a block with `preserves` that changes an output."""
    if not torch.allclose(before, after, rtol=PRESERVED, atol=PRESERVED):
        raise SpecError("changes the model's outputs", where=where, remedy="put it at another layer")


def _require_run(module: nn.Module, data: Data, added: dict[str, nn.Module], where: str) -> None:
    """Run two examples, to refuse a block that never runs and would silently do nothing.

    Raises:
        SpecError: A block does not run, or does not fit its input.
    """
    reached = set[nn.Module]()
    handles = [part.register_forward_hook(lambda run, _, __: reached.add(run)) for part in added.values()]
    try:
        with evaluating(module), torch.no_grad(), forked():
            data.objective.prediction(module, data.batch(data.train[:2]))
    except (RuntimeError, ValueError, IndexError) as error:
        raise SpecError(f"the model does not run with it ({error})", where=where, remedy="put it elsewhere") from None
    finally:
        for handle in handles:
            handle.remove()
    idle = [path for path, part in added.items() if part not in reached]
    if idle:
        finding = f"{idle[0]!r} never runs as a module, so the block there would do nothing"
        raise SpecError(finding, where=f"{where}.at", remedy="put it behind another module")
