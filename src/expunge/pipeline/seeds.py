"""The seed of each stage: everything random in a stage follows from the run's seed and the kind of stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from expunge.base.seeds import derive
from expunge.pipeline.stage import Stage

if TYPE_CHECKING:
    from expunge.pipeline.parts import Parts


@dataclass(frozen=True)
class StageSeeds:
    """Seeds of the stages of a spec. They do not depend on labels: a part under another label draws the same."""

    parts: Parts

    def case(self, stage: Stage) -> int:
        """The seed of the case that a part sees."""
        return stage.seed or 0

    def stage(self, stage: Stage) -> int:
        """For the global generators, from which the user's parts may draw."""
        return derive(_own(stage), "stage", stage.kind)

    def measure(self, stage: Stage) -> int:
        """For statistics. Those of a task depend on the data, not on a seed of the run."""
        return derive(_own(stage), "measure")

    def train(self, stage: Stage) -> int:
        """For training. It does not depend on the kind of stage: original and reference share their initial weights."""
        return derive(_own(stage), "train")

    def unlearn(self, stage: Stage) -> int:
        """For a method. It contains the names of the methods before, so that a repeated method draws new numbers."""
        return derive(_own(stage), "unlearn", *(entry.name for entry in self.parts.spec.chain(stage.model)))

    def attack(self, stage: Stage) -> int:
        """For an attack: the same for every model of the seed, and the same for all shadows with the same number."""
        return derive(_own(stage), "attack", self.parts.name_of("attack", stage.attack or ""))

    def audit(self, stage: Stage) -> int:
        """For an audit: the same for every model of the seed."""
        return derive(stage.seed or 0, "audit", self.parts.name_of("audit", stage.part))

    def diagnostic(self, stage: Stage) -> int:
        """For a diagnostic. It does not depend on the run's seed, because C-scores belong to the data."""
        return derive(0, "probe", self.parts.name_of("diagnostic", stage.part))


def _own(stage: Stage) -> int:
    """The run's seed; for a shadow, a seed that shadows of all models with the same number share."""
    seed = stage.seed or 0
    return derive(seed, "shadow", stage.part) if stage.kind == "shadow" else seed
