"""One call of an unlearning method: everything that it is given besides the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from expunge.core.case import Meter, Recipe
from expunge.core.generators import generator_of
from expunge.core.problem import Problem


@dataclass(frozen=True, eq=False)
class Job:
    """What a method is asked to do.

    Args:
        problem: What is to be forgotten, and what is to be kept.
        recipe: How such models are trained; `None` where it is lost.
        seed: Everything random in the method follows from it.
        meter: Charged for every per-example gradient; knows the budget.
        device: Where the model's parameters are.
        statistics: What the method's `measure` returned, on that device; empty for a method that measures nothing.
    """

    problem: Problem
    recipe: Recipe | None
    seed: int
    meter: Meter
    device: torch.device
    statistics: Mapping[str, Tensor] = field(default_factory=dict)

    def generator(self, *names: object) -> torch.Generator:
        """A generator of its own for each purpose, such as `"batches"`; on the CPU, so that all devices draw alike."""
        return generator_of(self.seed, *names)
