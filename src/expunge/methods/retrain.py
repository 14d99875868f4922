"""Train a new model from scratch without the forget set: the gold standard, and here the null control.

It runs with another seed than its reference, so that whatever an audit finds between the two is not unlearning.

Cost: one gradient per retain example and epoch of training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from expunge.base.seeds import derive
from expunge.core.case import Meter, Recipe
from expunge.core.contracts import Method
from expunge.core.problem import Problem


@dataclass(frozen=True)
class Retrain(Method):
    """Retrain on the retain set as far as it is known: undiscovered corruption stays in."""

    needs: ClassVar[frozenset[str]] = frozenset({"recipe"})
    effort: ClassVar[str] = "R E of training"

    def apply(self, student: nn.Module, problem: Problem, recipe: Recipe | None, seed: int, meter: Meter) -> nn.Module:
        """Build and train anew; the student is not used."""
        assert recipe is not None  # guaranteed by `needs`
        fresh = derive(seed, "retrain")
        return recipe.fit(recipe.build(fresh), problem.data, problem.retain, fresh, meter)
