"""The plan of a run: a spec, its parts and its stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from expunge.base.errors import RunError
from expunge.base.inputs import changed, signatures
from expunge.base.spec import Spec
from expunge.base.user_code import add_search_path
from expunge.core.data import Data
from expunge.evidence.table import UNMERGED
from expunge.pipeline.input_files import UNCHANGED
from expunge.pipeline.layout import Layout
from expunge.pipeline.parts import Parts
from expunge.pipeline.seeds import StageSeeds
from expunge.pipeline.stage import Stage

__all__ = ["Plan", "Stage"]


@dataclass(frozen=True)
class SpecHome:
    """The spec, from which any process can make the plan."""

    spec: Spec
    inputs: Mapping[str, str]
    """Digests of the input files when the run was planned, see `InputFiles.digests`."""
    code: tuple[Path, ...] = ()
    """The user's code; its contents are part of the keys of stages."""

    def plan(self) -> Plan:
        """The plan of the spec.

        Raises:
            RunError: An input file has other contents now, or code was changed while it was imported.
        """
        before = signatures(self.code)
        if self.spec.names_code:
            add_search_path(self.spec.folder)
        plan = Plan(self.spec)
        now = plan.inputs.digests()
        other = next((place for place in {**now, **self.inputs} if now.get(place) != self.inputs.get(place)), None)
        if other is not None:
            finding = "the file has other contents than when the run was planned"
            raise RunError(finding, where=other, remedy=UNCHANGED)
        for path in changed(before):
            raise RunError("the file was changed while a worker imported it", where=str(path), remedy=UNCHANGED)
        return plan


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

    @property
    def rows(self) -> list[str]:
        """Labels of the rows of results, in order: the models, each with base and adapter behind it, if they ran."""
        shown = {stage.model for stage in self.stages}
        return [row for model in self.models for row in (model, f"{model}{UNMERGED}") if row == model or row in shown]

    def fresh(self, stage: Stage, data: Data) -> nn.Module:
        """A module into which a stage's weights can be loaded."""
        return self.recipe(data).build(0)

    @property
    def home(self) -> Any:
        """Small plain data, without code, from which another process makes this plan by `home.plan()`."""
        code = {path for paths in self.inputs.code.values() for path in paths}
        return SpecHome(self.spec, self.inputs.digests(), tuple(sorted(code)))

    @property
    def seeds(self) -> StageSeeds:
        """The seed of each stage."""
        return StageSeeds(self)
