"""The plan of a run: a spec, its parts and its stages."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from expunge.base.spec import Spec
from expunge.base.user_code import add_search_path
from expunge.core.data import Data
from expunge.pipeline.layout import Layout
from expunge.pipeline.parts import Parts
from expunge.pipeline.seeds import StageSeeds
from expunge.pipeline.stage import Stage

__all__ = ["Plan", "Stage"]


@dataclass(frozen=True)
class SpecHome:
    """The spec, from which any process can make the plan."""

    spec: Spec

    def plan(self) -> Plan:
        """The plan of the spec."""
        if self.spec.names_code:
            add_search_path(self.spec.folder)
        return Plan(self.spec)


@dataclass(frozen=True)
class Plan(Parts):
    """The parts and stages of a run, before anything is computed."""

    @cached_property
    def stages(self) -> list[Stage]:
        """All stages in the order of the results, each after the stages that it needs."""
        return Layout(self).stages()

    @cached_property
    def by_key(self) -> dict[str, Stage]:
        """The stages by their key; if several have the same key, the last of them."""
        return {stage.key: stage for stage in self.stages}

    def fresh(self, stage: Stage, data: Data) -> nn.Module:
        """A module into which a stage's weights can be loaded."""
        return self.recipe(data).build(0)

    @property
    def home(self) -> Any:
        """Small plain data, without code, from which another process makes this plan by `home.plan()`."""
        return SpecHome(self.spec)

    @property
    def seeds(self) -> StageSeeds:
        """The seed of each stage."""
        return StageSeeds(self)
