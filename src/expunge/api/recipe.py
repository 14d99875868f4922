"""How your model is trained: two functions of yours, whose modules are checked before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from expunge.api.parts import expect
from expunge.base.errors import ExpungeError, SpecError
from expunge.core.case import Meter, Recipe
from expunge.core.data import Data
from expunge.core.device import placed
from expunge.core.first_pass import first_line, unwrapped
from expunge.core.modules import first_parameter, widened
from expunge.core.own_training import require_independent, require_same_shapes, train_in_place
from expunge.core.seeding import forked

BUILD, TRAIN = "recipe.build", "recipe.train"
"""The user's functions, for messages."""
MODULE = "a function that returns a fresh torch.nn.Module"


@dataclass(frozen=True)
class FunctionRecipe:
    """A recipe made of two of your functions.

    Args:
        make: Returns a freshly initialised module.
        train: `train(module, dataset)` trains the module in place, with your own loop, on a map-style data set of your
            items.
        items: All items; the index of an item is its id.
        device: Device of the models, before and after training: that of the user's model.
    """

    make: Callable[[], nn.Module]
    train: Callable[[nn.Module, Dataset[Any]], object]
    items: Dataset[Any]
    device: torch.device | str = "cpu"
    original: nn.Module | None = None
    """The user's model, with which no module of the recipe may share memory."""

    def build(self, seed: int) -> nn.Module:
        """The freshly initialised module of this seed, in single precision if your function makes half precision."""
        with forked(seed):
            module = self.make()
            expect(module, nn.Module, BUILD, MODULE)
            return widened(self._own(placed(unwrapped(module), self.device), BUILD))

    def fit(self, module: nn.Module, data: Data, ids: Tensor, seed: int, meter: Meter | None = None) -> nn.Module:
        """Train the module by the user's function on the chosen items; its cost in gradients is not known.

        Raises:
            SpecError: The function returned another module, did not read its data set, or took the original's tensors.
        """
        with forked(seed):
            train_in_place(self.train, module, self.items, ids, TRAIN)
        return widened(self._own(placed(module, self.device), TRAIN))

    def _own(self, module: nn.Module, where: str) -> nn.Module:
        require_independent(module, {"your model": self.original} if self.original is not None else {}, where)
        return module


Functions = tuple[Callable[[], nn.Module], Callable[[nn.Module, Dataset[Any]], object]]
"""`(build, train)`: a function that makes a fresh module, and one that trains a module on a data set of your items."""


def recipe(build: Callable[[], nn.Module], train: Callable[[nn.Module, Dataset[Any]], object]) -> Functions:
    """How your model is trained, for `case`.

    Args:
        build: Returns a freshly initialised module.
        train: `train(module, dataset)` trains the module in place.

    Returns:
        The value for `case(recipe=...)`.
    """
    return build, train


def recipe_of(recipe: Any, items: Dataset[Any], model: nn.Module) -> Recipe | None:
    """The recipe of a case from what its user gave.

    Args:
        recipe: Two functions, an object with `build` and `fit`, or `None`.
        items: All items of the case.
        model: The user's model.

    Raises:
        SpecError: It is none of these.
    """
    if isinstance(recipe, tuple) and len(recipe) == 2 and all(map(callable, recipe)):
        return FunctionRecipe(*recipe, items, first_parameter(model).device, model)
    if recipe is not None and not (hasattr(recipe, "build") and hasattr(recipe, "fit")):
        raise SpecError(
            f"found {type(recipe).__name__}",
            where="recipe",
            allowed="expunge.recipe(build, train), or an object with the functions build and fit",
        )
    made: Recipe | None = recipe
    return made


def check_recipe(recipe: Recipe, model: nn.Module) -> None:
    """Refuse a recipe whose modules are not like the user's model, or are not new in every call.

    Raises:
        SpecError: `build` failed, or made such a module.
    """
    first, second = (_built(recipe, seed) for seed in (0, 1))
    require_same_shapes(first, model, BUILD)
    require_independent(first, {"your model": model}, BUILD)
    require_independent(second, {"your model": model, "the module of an earlier call": first}, BUILD)


def _built(recipe: Recipe, seed: int) -> nn.Module:
    try:
        module = recipe.build(seed)
    except ExpungeError:
        raise
    except Exception as error:
        finding = f"the function failed ({type(error).__name__}: {first_line(error)})"
        raise SpecError(finding, where=BUILD, allowed=MODULE) from error
    expect(module, nn.Module, BUILD, MODULE)
    return module
