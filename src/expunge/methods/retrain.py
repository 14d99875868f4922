"""Train a new model from scratch without the forget set: the gold standard, and here the null control.

Its seed differs from that of the reference. A difference that an audit finds between the two is therefore not an effect
of unlearning.

Cost: one gradient per retain example and epoch of training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from expunge.base.seeds import derive
from expunge.core.job import Job
from expunge.core.method import Method


@dataclass(frozen=True)
class Retrain(Method):
    """Retrain on the retain set, which still contains undiscovered corruption."""

    held: ClassVar[float] = 1
    needs: ClassVar[frozenset[str]] = frozenset({"recipe"})
    effort: ClassVar[str] = "R E of training"

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Build and train a new model; the student is not used."""
        assert job.recipe is not None  # guaranteed by `needs`
        fresh = derive(job.seed, "retrain")
        return job.recipe.fit(job.recipe.build(fresh), job.problem.data, job.problem.retain, fresh, job.meter)
