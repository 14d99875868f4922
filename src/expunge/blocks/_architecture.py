"""An architecture whose models have blocks in them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
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
"""Largest change of an output that counts as none, in double precision."""


@dataclass(frozen=True)
class Placed:
    """A block, the patterns of the paths that it is put behind, and its name in the spec."""

    block: Any
    at: tuple[str, ...]
    name: str

    def settings(self) -> dict[str, Any]:
        """As a spec's table."""
        return {"name": self.name, "at": list(self.at), **self.block.settings()}

    def fingerprint(self) -> dict[str, Any]:
        """What enters the keys of stages."""
        return {"at": list(self.at), "block": self.block.fingerprint()}


@dataclass(frozen=True)
class WithBlocks(Architecture):
    """A model family with blocks put into each of its models, in their order.

    Weights are drawn as without blocks: those of the architecture first, then those of each block.
    """

    architecture: Any
    """The model family, or a function that builds a model."""
    placed: tuple[Placed, ...]
    """What is put where."""

    def __post_init__(self) -> None:
        """The parts in it have been checked."""

    @property
    def version(self) -> int:  # type: ignore[override]
        """The architecture's."""
        found: int = self.architecture.version
        return found

    def settings(self) -> dict[str, Any]:
        """The architecture's, and its blocks as a spec has them."""
        return {**self.architecture.settings(), "block": [placed.settings() for placed in self.placed]}

    def fingerprint(self) -> dict[str, Any]:
        """The architecture's and its blocks'."""
        return {**self.architecture.fingerprint(), "block": [placed.fingerprint() for placed in self.placed]}

    def original_digest(self) -> str | None:
        """The architecture's: blocks are settings."""
        brings = isinstance(self.architecture, Architecture)
        return self.architecture.original_digest() if brings else None

    def original(self, data: Data) -> nn.Module | None:
        """The user's own model with the blocks in it."""
        module = self.architecture.original(data)
        return None if module is None else self._put(module, data)

    def __call__(self, data: Data) -> nn.Module:
        """A fresh model with the blocks in it.

        Raises:
            SpecError: A block does not fit; names its place in the spec.
        """
        return self._put(self.architecture(data), data)

    def _put(self, module: nn.Module, data: Data) -> nn.Module:
        for i, placed in enumerate(self.placed):
            where = f"model.block[{i}]"
            before = set(inserted(module))
            outputs = _outputs(module, data) if getattr(placed.block, "preserves", False) else None
            put(module, _named(placed.block, where), placed.at, where=where)
            _require_run(module, data, [block for block in inserted(module) if block not in before], where)
            if outputs is not None:
                _require_same(outputs, _outputs(module, data), where)
        return module


def with_blocks(architecture: Any, placed: Sequence[Placed]) -> Any:
    """The architecture with these blocks in its models; without any, itself.

    Args:
        architecture: A model family, or a function of the data.
        placed: What is put where.
    """
    return WithBlocks(architecture, tuple(placed)) if placed else architecture


def _named(block: Any, where: str) -> Any:
    """The block, with its place before whatever it refuses."""

    def call(model: nn.Module, path: str) -> nn.Module | None:
        try:
            module: nn.Module | None = block(model, path)
        except ExpungeError as error:
            raise error.at(where) from None
        return module

    return call


def _outputs(module: nn.Module, data: Data) -> Tensor:
    """What the model says of two examples, in double precision."""
    double = copy.deepcopy(module).double().eval()
    with torch.no_grad(), forked():
        outputs: Tensor = data.objective.prediction(double, data.batch(data.train[:2]))
        return outputs


def _require_same(before: Tensor, after: Tensor, where: str) -> None:
    """Refuse a block that promises to change no output, and does."""
    if not torch.allclose(before, after, rtol=PRESERVED, atol=PRESERVED):
        raise SpecError("changes the model's outputs", where=where, remedy="put it at another layer")


def _require_run(module: nn.Module, data: Data, added: list[Any], where: str) -> None:
    """Run two examples: a block that is never reached would do nothing, and nobody would notice.

    Raises:
        SpecError: A block does not run, or does not fit what it is given.
    """
    reached = set[nn.Module]()
    handles = [block.module.register_forward_hook(lambda run, _, __: reached.add(run)) for block in added]
    try:
        with evaluating(module), torch.no_grad(), forked():
            data.objective.prediction(module, data.batch(data.train[:2]))
    except (RuntimeError, ValueError, IndexError) as error:
        raise SpecError(f"the model does not run with it ({error})", where=where, remedy="put it elsewhere") from None
    finally:
        for handle in handles:
            handle.remove()
    idle = [block.path for block in added if block.module not in reached]
    if idle:
        finding = f"{idle[0]!r} never runs as a module, so that the block behind it would do nothing"
        raise SpecError(finding, where=f"{where}.at", remedy="put it behind another module")
