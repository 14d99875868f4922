"""One seed of a problem with its models, and the results of methods and attacks."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from expunge.base.errors import MissingError, SpecError
from expunge.core.data import Data
from expunge.core.modules import parameters_digest, require_single_precision
from expunge.core.norms import training_mode
from expunge.core.problem import Problem
from expunge.core.seeding import forked


class Recipe(Protocol):
    """How such models are trained. Without a recipe there is no retrained model to compare with."""

    def build(self, seed: int) -> nn.Module:
        """A freshly initialised model, the same for the same seed."""
        ...

    def fit(self, module: nn.Module, data: Data, ids: Tensor, seed: int, meter: Meter | None = None) -> nn.Module:
        """Train the module, in place, on these examples and return it."""
        ...


@dataclass
class Meter:
    """Counts per-example gradients; with a limit, says whether more gradients stay within it.

    Args:
        limit: Upper bound in per-example gradients; `None` for no bound.
        gradients: Number of per-example gradients so far.
    """

    limit: int | None = None
    gradients: int = 0

    def affords(self, count: int) -> bool:
        """Whether `count` more gradients stay within the limit."""
        return self.limit is None or self.gradients + count <= self.limit

    def charge(self, count: int) -> None:
        """Add `count` per-example gradients; a Hessian-vector product counts 2 per example."""
        self.gradients += count


@dataclass(frozen=True)
class Cost:
    """Cost of a computation: per-example gradients and wall-clock seconds."""

    gradients: int
    seconds: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.gradients + other.gradients, self.seconds + other.seconds)


@dataclass(frozen=True)
class Unlearned:
    """Result of a method: the new model, the method's label, and its cost."""

    model: nn.Module
    method: str
    cost: Cost
    part: Any = None
    """The method with its settings, so that shadow models can be unlearned the same way; `None` if unknown."""
    budget: int | None = None
    """The method's upper bound in per-example gradients."""
    after: Unlearned | None = None
    """Result of the method before this one; `None` if the method started from the original."""
    adapter: Mapping[str, Any] | None = None
    """Settings of the adapter that was trained and merged; `None` if the method changed weights directly."""

    def __repr__(self) -> str:
        model, cost = type(self.model).__name__, self.cost
        return f"Unlearned({self.method}: {model}, {cost.gradients} gradients, {cost.seconds:.1f} s)"


@dataclass(frozen=True)
class Curve:
    """Knowledge of the unexposed forget set during an attack: steps `[p]`, values `[p, n]` in [0, 1], and ids `[n]`."""

    steps: np.ndarray
    values: np.ndarray
    ids: np.ndarray
    collapsed: np.ndarray | None = None
    """Points at which the model answers alike whatever the input, `[p]` bool; by default none."""

    @property
    def peak(self) -> int:
        """Index of the point, after the first, with the largest mean value; the earliest among equals.

        A collapsed point is the peak only if all points are collapsed.
        """
        means = self.values[1:].mean(1)
        if self.collapsed is not None and not self.collapsed[1:].all():
            means = np.where(self.collapsed[1:], -np.inf, means)
        return 1 + int(means.argmax())


@dataclass(frozen=True)
class Attacked:
    """Result of an attack: the model at the curve's peak, on which any audit can run, the curve and the cost."""

    model: nn.Module
    curve: Curve
    cost: Cost


@dataclass(frozen=True, eq=False)
class Shadows:
    """Models made like the audited one, from other seeds. Models with the same index share their initial weights."""

    knew: Sequence[nn.Module]
    """Trained on retain and forget set, then unlearned and attacked like the audited model. If the audited model is a
    retrained one, only trained."""
    never: Sequence[nn.Module]
    """Trained as references are, without the forget set."""


@dataclass(frozen=True, eq=False)
class Case:
    """One seed of a problem: the problem, the original model, the recipe and the retrained reference.

    Args:
        seed: The run's seed.
        problem: What is to be forgotten.
        original: The model that was trained on the forget set.
        recipe: How such models are trained; `None` if that is not known.
        shadows: Shadow models, for audits that need them.
    """

    seed: int
    problem: Problem
    original: nn.Module
    recipe: Recipe | None = None
    shadows: Shadows | None = None

    def __repr__(self) -> str:
        recipe = "no recipe" if self.recipe is None else type(self.recipe).__name__
        return f"Case({type(self.original).__name__}, {self.problem!r}, {recipe}, seed {self.seed})"

    @cached_property
    def reference(self) -> nn.Module:
        """The model retrained from the original's initial weights without the forget set and without corruption.

        Raises:
            MissingError: The case has no recipe.
        """
        if self.recipe is None:
            raise MissingError("there is no recipe to retrain with", where="case", remedy="pass recipe=")
        return train_model(self.recipe, self.problem.data, self.problem.reference_train, self.seed)


def train_model(recipe: Recipe, data: Data, ids: Tensor, seed: int, meter: Meter | None = None) -> nn.Module:
    """Build and train a model. Global random state does not change.

    Raises:
        SpecError: The training changed no weight.
    """
    with forked(seed):
        module = recipe.build(seed)
        before = parameters_digest(module)
        trained = recipe.fit(module, data, ids, seed, meter).eval()
    if parameters_digest(trained) == before:
        raise SpecError(
            "training changed no weight",
            where="train",
            allowed="a training that changes the module that it is given, in place",
            remedy="train the module itself, not a copy of it",
        )
    return trained


def copy_for_training(model: nn.Module) -> nn.Module:
    """An independent copy in training mode (see `training_mode`); parameters stay frozen and tied.

    Raises:
        SpecError: The weights are in half precision, in which steps round away.
    """
    require_single_precision(model)
    return training_mode(copy.deepcopy(model))
