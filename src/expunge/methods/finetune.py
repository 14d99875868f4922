"""Keep training on the retain set and hope that the rest is forgotten ("catastrophic forgetting", 2505.22310).

Cost: one gradient per retain example and epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from expunge.core.case import Meter, Recipe
from expunge.core.problem import Problem
from expunge.methods._descent import Descent


@dataclass(frozen=True)
class Finetune(Descent):
    """Minimise cross-entropy on the retain set."""

    cite: ClassVar[str] = "siddiqui2025dormant"
    paper: ClassVar[str] = "catastrophic forgetting, 2025"
    effort: ClassVar[str] = "R E"

    @property
    def ascent(self) -> float | None:
        """None of it, with SGD; Adam scales steps weight by weight."""
        return 0.0 if self.optimizer == "sgd" else None

    def apply(self, student: nn.Module, problem: Problem, recipe: Recipe | None, seed: int, meter: Meter) -> nn.Module:
        """Descend on retain batches."""
        return self.descend_on_retain(student, problem, seed, meter)
