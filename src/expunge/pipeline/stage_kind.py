"""What a kind of stage is. A file here is one, and so is an entry point of the group `expunge.stages`.

The file's name is the kind, and its class has the same name with `Stage` behind it: `audit.py` holds `AuditStage`.
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
    """What a stage computed: files by name, and the per-example gradients that it took."""

    files: Mapping[str, bytes]
    gradients: int = 0


@dataclass(frozen=True)
class StageKind(Part):
    """One kind of computation: what it writes, what it is expected to cost, and how it runs."""

    files: ClassVar[Mapping[str, str | None]] = MappingProxyType({})
    """Each file that a stage writes, no more and no fewer -> folder of the record that keeps it, or none."""

    def written(self, plan: Parts) -> Mapping[str, str | None]:
        """What this plan's stages write: `files` unless the spec asks for more."""
        return self.files

    @abstractmethod
    def run(self, worker: Worker, stage: Stage) -> Output:
        """Compute the stage from the stored outputs of its inputs.

        Raises:
            ExpungeError: The part that it runs failed.
        """

    @abstractmethod
    def cost(self, plan: Parts, stage: Stage) -> float:
        """Per-example gradients that the stage is expected to take, a forward pass counted as `FORWARD`."""

    def added(self, layout: Layout, stages: Sequence[Stage]) -> Iterator[Stage]:
        """Stages of this kind that a run gets besides those that `pipeline/layout.py` lays out; none by default.

        Args:
            layout: Makes a stage with its key: `layout.stage(...)`.
            stages: All that are laid out so far; inputs are taken from them.
        """
        return iter(())


FORWARD = 1 / 3
"""Cost of a forward pass in units of a gradient: the backward pass is twice the forward one."""


@cache
def kind_of(name: str) -> StageKind:
    """The kind of stage with this name.

    Raises:
        SpecError: There is none.
    """
    kind = registry.build("stage", name, {}, where="stage")
    if not isinstance(kind, StageKind):
        raise SpecError(f"{name!r} is {type(kind).__name__}", where="stage", allowed="a class derived from StageKind")
    return kind


def setting(part: Part, name: str, default: float) -> float:
    """A number among the settings of a part."""
    settings: dict[str, Any] = part.settings()
    value = settings.get(name)
    return float(value) if isinstance(value, int | float) else default
