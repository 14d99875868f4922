"""A spec with its parts made and its stages laid out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from expunge.pipeline.layout import Layout, Stage
from expunge.pipeline.parts import Parts

__all__ = ["Plan", "Stage"]


@dataclass(frozen=True)
class Plan(Parts):
    """All that a run needs to know before it computes anything."""

    @cached_property
    def stages(self) -> list[Stage]:
        """All stages, each after those that it needs, in the order of the results."""
        return list(Layout(self).stages())
