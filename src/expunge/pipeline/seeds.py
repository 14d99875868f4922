"""The seed of each stage: everything random in a stage follows from the run's seed and from what the stage is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from expunge.base.seeds import derive
from expunge.pipeline.stage import Stage

if TYPE_CHECKING:
    from expunge.pipeline.parts import Parts


@dataclass(frozen=True)
class StageSeeds:
    """Seeds of the stages of a spec. Labels are no part of them: the same part under another label draws the same."""

    parts: Parts

    def case(self, stage: Stage) -> int:
        """The seed of the case that a part sees."""
        return stage.seed or 0

    def stage(self, stage: Stage) -> int:
        """For the global generators, which parts of the user's may draw from."""
        return derive(_own(stage), "stage", stage.kind)

    def measure(self, stage: Stage) -> int:
        """For statistics. Those of a task belong to the data and not to a seed of the run."""
        return derive(_own(stage), "measure")

    def train(self, stage: Stage) -> int:
        """For training. Original and reference of a seed share their initial weights: the kind is no part of it."""
        return derive(_own(stage), "train")

    def unlearn(self, stage: Stage) -> int:
        """For a method. With the names of those before it, a method after itself does not draw the same numbers."""
        return derive(_own(stage), "unlearn", *(entry.name for entry in self.parts.spec.chain(stage.model)))

    def attack(self, stage: Stage) -> int:
        """For an attack: the same for every model, and one for the shadows of a number."""
        return derive(_own(stage), "attack", self.parts.name_of("attack", stage.attack or ""))

    def audit(self, stage: Stage) -> int:
        """For an audit: the same for every model of the seed."""
        return derive(stage.seed or 0, "audit", self.parts.name_of("audit", stage.part))

    def diagnostic(self, stage: Stage) -> int:
        """For a diagnostic. C-scores belong to the data, not to a seed of the run."""
        return derive(0, "probe", self.parts.name_of("diagnostic", stage.part))


def _own(stage: Stage) -> int:
    """The run's seed; a shadow has one of its own, which it shares with the shadows of other models."""
    seed = stage.seed or 0
    return derive(seed, "shadow", stage.part) if stage.kind == "shadow" else seed
