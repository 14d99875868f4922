"""A spec with its parts made and its stages laid out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from expunge.base.registry import add_search_path
from expunge.base.spec import Spec
from expunge.core.data import Data
from expunge.pipeline.layout import Layout
from expunge.pipeline.parts import Parts
from expunge.pipeline.seeds import StageSeeds
from expunge.pipeline.stage import Stage

__all__ = ["Plan", "Stage"]


@dataclass(frozen=True)
class SpecHome:
    """A spec, which is all that a plan follows from."""

    spec: Spec

    def plan(self) -> Plan:
        """The plan of the spec."""
        add_search_path(self.spec.folder)
        return Plan(self.spec)


@dataclass(frozen=True)
class Plan(Parts):
    """All that a run needs to know before it computes anything."""

    @cached_property
    def stages(self) -> list[Stage]:
        """All stages, each after those that it needs, in the order of the results."""
        return Layout(self).stages()

    @cached_property
    def by_key(self) -> dict[str, Stage]:
        """The stages by their key; of several with one key the last."""
        return {stage.key: stage for stage in self.stages}

    def fresh(self, stage: Stage, data: Data) -> nn.Module:
        """A module that the weights of a stage fit."""
        return self.recipe(data).build(0)

    @property
    def home(self) -> Any:
        """What another process makes this plan from, by `home.plan()`: small plain data, and no code."""
        return SpecHome(self.spec)

    @property
    def seeds(self) -> StageSeeds:
        """The seed of each stage."""
        return StageSeeds(self)
