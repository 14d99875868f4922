"""The arguments of one call of an unlearning method, other than the model that it starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from expunge.core.case import Meter, Recipe
from expunge.core.generators import generator_of
from expunge.core.problem import Problem


@dataclass(frozen=True, eq=False)
class Job:
    """The task of a method: problem, recipe, seed, meter, device and original.

    Args:
        problem: What must be forgotten, and what must be kept.
        recipe: How such models are trained; `None` if that is not known.
        seed: Everything random in the method follows from it.
        meter: Counts every per-example gradient, and holds the budget.
        device: Where the model's parameters are.
        original: The case's original model, which was trained on the forget set. A method that runs after another one
            starts from that one's model, and this is still the original. Never change it.
        statistics: What the method's `measure` returned, on that device; empty for a method that measures nothing.
    """

    problem: Problem
    recipe: Recipe | None
    seed: int
    meter: Meter
    device: torch.device
    original: nn.Module
    statistics: Mapping[str, Tensor] = field(default_factory=dict)

    def generator(self, *names: object) -> torch.Generator:
        """The generator of one purpose, such as `"batches"`; on the CPU, so that all devices draw the same numbers."""
        return generator_of(self.seed, *names)
