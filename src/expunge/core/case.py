"""One seed of a problem with its models, and what a method or an attack makes of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from expunge.base.errors import MissingError
from expunge.core.data import Data
from expunge.core.problem import Problem
from expunge.core.seeding import forked


class Recipe(Protocol):
    """How such a model is trained; without one there is no retrained model to compare with."""

    def build(self, seed: int) -> nn.Module:
        """A freshly initialised model, the same for the same seed."""
        ...

    def fit(self, module: nn.Module, data: Data, ids: Tensor, seed: int, meter: Meter | None = None) -> nn.Module:
        """Train the module, in place, on these examples and return it."""
        ...


@dataclass
class Meter:
    """Counts per-example gradients; with a limit, says when the next charge would exceed it.

    Args:
        limit: Upper bound in per-example gradients; `None` for none.
    """

    limit: int | None = None
    gradients: int = 0

    def affords(self, count: int) -> bool:
        """Whether so many more stay within the limit."""
        return self.limit is None or self.gradients + count <= self.limit

    def charge(self, count: int) -> None:
        """Record so many per-example gradients; a Hessian-vector product counts 2 per example."""
        self.gradients += count


@dataclass(frozen=True)
class Cost:
    """What something cost: per-example gradients and wall-clock seconds."""

    gradients: int
    seconds: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.gradients + other.gradients, self.seconds + other.seconds)


@dataclass(frozen=True)
class Unlearned:
    """What a method returns: the new model, the method's label, and its cost."""

    model: nn.Module
    method: str
    cost: Cost
    part: Any = None
    """The method with its settings, to be run again on shadow models; `None` where it is not known."""
    budget: int | None = None
    """Its bound in per-example gradients."""
    after: Unlearned | None = None
    """What it started from, where that was not the original."""


@dataclass(frozen=True)
class Curve:
    """What an attack saw on the unexposed forget set: steps `[p]` and values `[p, n]` in [0, 1], with the ids `[n]`."""

    steps: np.ndarray
    values: np.ndarray
    ids: np.ndarray

    @property
    def peak(self) -> int:
        """Index of the point, after the first step, at which most is known; the earliest among equals."""
        return 1 + int(self.values[1:].mean(1).argmax())


@dataclass(frozen=True)
class Attacked:
    """What an attack returns: the model at the curve's peak, so that any audit can run on it, and the curve."""

    model: nn.Module
    curve: Curve
    cost: Cost


@dataclass(frozen=True, eq=False)
class Shadows:
    """Models made like the audited one, from other seeds; those with the same index share their initial weights."""

    knew: Sequence[nn.Module]
    """Trained on retain and forget set, then treated as the audited model was; only trained for a retrained one."""
    never: Sequence[nn.Module]
    """Trained as references are, without the forget set."""


@dataclass(frozen=True, eq=False)
class Case:
    """One seed: the problem, the original model, how such models are trained, and retrained references.

    Args:
        seed: The run's seed.
        problem: What is to be forgotten.
        original: The model that knows it.
        recipe: How such models are trained; `None` where it is lost.
        shadows: For audits that ask for some.
    """

    seed: int
    problem: Problem
    original: nn.Module
    recipe: Recipe | None = None
    shadows: Shadows | None = None

    @cached_property
    def reference(self) -> nn.Module:
        """The model retrained from the original's initial weights without the forget set and without corruption.

        Raises:
            MissingError: There is no recipe to retrain with.
        """
        if self.recipe is None:
            raise MissingError("there is no recipe to retrain with", where="case", remedy="pass recipe=")
        return train_model(self.recipe, self.problem.data, self.problem.reference_train, self.seed)


def train_model(recipe: Recipe, data: Data, ids: Tensor, seed: int, meter: Meter | None = None) -> nn.Module:
    """Build and train a model; nothing outside is touched, the global random state included."""
    with forked(seed):
        module = recipe.build(seed)
        return recipe.fit(module, data, ids, seed, meter).eval()


def copy_for_training(model: nn.Module) -> nn.Module:
    """An independent copy in training mode; frozen parameters stay frozen, ties stay ties."""
    return copy.deepcopy(model).train()
