"""The contract of a kind of stage. Each file here defines one; so does each entry point of the group `expunge.stages`.

The file's name is the kind, and its class has the same name followed by `Stage`: `audit.py` defines `AuditStage`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from expunge.base import registry
from expunge.base.errors import SpecError
from expunge.base.part import Part
from expunge.pipeline.stage import Stage

if TYPE_CHECKING:
    from expunge.pipeline.layout import Layout
    from expunge.pipeline.parts import Parts
    from expunge.pipeline.worker import Worker


@dataclass(frozen=True)
class Output:
    """The output of a stage: files by name, and the number of per-example gradients that it computed."""

    files: Mapping[str, bytes]
    gradients: int = 0
    changed: bool | None = None
    """For a method: whether any weight differs from those of the model that it started from."""
    kept: str = ""
    """For a method that changed only the upper half of the original: the last layer below its first change."""
    merging: float | None = None
    """With an adapter: the largest difference between outputs of the merged model and those with the adapter."""


@dataclass(frozen=True)
class StageKind(Part):
    """One kind of computation: which files it writes, what it is expected to cost, and how it runs."""

    files: ClassVar[Mapping[str, str | None]] = MappingProxyType({})
    """Exactly the files that a stage writes -> folder of the record that keeps the file; `None` if none does."""

    def written(self, plan: Parts) -> Mapping[str, str | None]:
        """The files that stages of this plan write: `files`, unless the spec asks for more."""
        return self.files

    @abstractmethod
    def run(self, worker: Worker, stage: Stage) -> Output:
        """Compute the stage from the stored outputs of its inputs.

        Raises:
            ExpungeError: The stage's part failed.
        """

    @abstractmethod
    def cost(self, plan: Parts, stage: Stage) -> float:
        """Expected per-example gradients of the stage; a forward pass counts as `FORWARD`."""

    def added(self, layout: Layout, stages: Sequence[Stage]) -> Iterator[Stage]:
        """More stages of this kind, in addition to those of `pipeline/layout.py`; none by default.

        Args:
            layout: `layout.stage(...)` makes a stage with its key.
            stages: All stages so far; inputs come from them.
        """
        return iter(())


FORWARD = 1 / 3
"""Cost of a forward pass in units of a gradient: the backward pass is twice the forward one."""


@cache
def kind_of(name: str) -> StageKind:
    """The kind of stage with this name.

    Raises:
        SpecError: There is no such kind.
    """
    kind = registry.build("stage", name, {}, where="stage")
    if not isinstance(kind, StageKind):
        raise SpecError(f"{name!r} is {type(kind).__name__}", where="stage", allowed="a class derived from StageKind")
    return kind


def setting(part: Part, name: str, default: float) -> float:
    """The setting of a part, if it is a number; otherwise the default."""
    settings: dict[str, Any] = part.settings()
    value = settings.get(name)
    return float(value) if isinstance(value, int | float) else default
