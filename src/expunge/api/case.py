"""Build a case from your model, data and training, and unlearn on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from expunge.api.objective import objective as named
from expunge.api.parts import expect
from expunge.base import registry
from expunge.base.errors import ExpungeError, SpecError
from expunge.base.seeds import derive
from expunge.core.adapt import conversion_for
from expunge.core.case import Case, Meter, Recipe, Unlearned
from expunge.core.collect import Collected, ItemInputs, collect, collect_lazily, items_of
from expunge.core.copies import groups_of_copies, row_digests, say_copies
from expunge.core.data import Batch, Data
from expunge.core.device import placed
from expunge.core.first_pass import EXAMPLES, copied, first_line, first_pass, guarded, unwrapped
from expunge.core.lazy import LazyInputs
from expunge.core.method import Method
from expunge.core.modules import first_parameter, weights_differ
from expunge.core.objective import CLASSES, TOKENS, Objective, inferred
from expunge.core.own_training import require_independent, require_same_shapes, train_in_place
from expunge.core.problem import Problem
from expunge.core.seeding import forked
from expunge.evidence.reasons import CHANGED_NOTHING
from expunge.reporting.progress import Progress

BUILD, TRAIN = "recipe.build", "recipe.train"
"""The user's functions, for messages."""


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
        """The freshly initialised module of this seed."""
        with forked(seed):
            return self._own(placed(unwrapped(self.make()), self.device), BUILD)

    def fit(self, module: nn.Module, data: Data, ids: Tensor, seed: int, meter: Meter | None = None) -> nn.Module:
        """Train the module by the user's function on the chosen items; its cost in gradients is not known.

        Raises:
            SpecError: The function returned another module, did not read its data set, or took the original's tensors.
        """
        with forked(seed):
            train_in_place(self.train, module, self.items, ids, TRAIN)
        return self._own(placed(module, self.device), TRAIN)

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


def case(
    model: nn.Module,
    *,
    forget: Any,
    retain: Any,
    test: Any,
    holdout: Any = None,
    recipe: Recipe | Functions | None = None,
    objective: Objective | str | None = None,
    in_memory: bool = True,
    workers: int = 0,
    seed: int = 0,
) -> Case:
    """Build a case from your model and your data.

    Args:
        model: The model that was trained on the forget set. It is never changed. Of a parallel or compiled module, the
            module inside is used.
        forget: The data to forget: a data set, a pair of tensors or NumPy arrays, or batches; see `core.collect`.
        retain: The rest of the model's training data.
        test: Unseen data on which utility is measured.
        holdout: Optional unseen examples that resemble the forget set. Without a recipe they replace retrained models.
        recipe: How such models are trained: `expunge.recipe(build, train)`, or an object with `build` and `fit`.
        objective: How the model's outputs are judged: a name such as `multilabel`, or, with settings,
            `expunge.objective("segmentation", ignore=255)`. By default it is inferred from the targets, if they are
            unambiguous.
        in_memory: Whether inputs are copied into memory. Otherwise they are read batch by batch from your map-style
            data sets, whose items must be the same on every read; targets stay in memory.
        workers: Processes that read ahead where inputs are not in memory.
        seed: Everything random follows from it.

    Returns:
        The case.

    Raises:
        SpecError: The data do not fit the model or each other, the model cannot be copied, it returns probabilities, or
            the recipe builds modules that are not like it or share memory; the message says where.
    """
    sources = {"forget": forget, "retain": retain, "test": test} | ({"holdout": holdout} if holdout is not None else {})
    expect(model, nn.Module, "model", "a torch.nn.Module")
    model, objective = unwrapped(model), named(objective) if isinstance(objective, str) else objective
    parts = {name: _read(source, name, seed, in_memory=in_memory) for name, source in sources.items()}
    data, ids = _pool(model, parts, objective, workers)
    trainer = _recipe_of(recipe, items_of(list(parts.values())), model)
    problem = Problem(data, **ids)  # type: ignore[arg-type]  # four tensors of ids
    first_pass(model, problem.objective, data.batch(torch.cat([ids["forget"], ids["test"]])[:EXAMPLES]))
    if trainer is not None:
        _check_recipe(trainer, model)
    say_copies(problem)
    return Case(seed, problem, model, trainer)


def _read(source: Any, name: str, seed: int, *, in_memory: bool) -> Collected:
    """One of the data sets. If its items are random, their draws follow from the seed of the case."""
    with forked(derive(seed, "data", name)):
        return (collect if in_memory else collect_lazily)(source, where=name)


def _recipe_of(recipe: Any, items: Dataset[Any], model: nn.Module) -> Recipe | None:
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


def _check_recipe(recipe: Recipe, model: nn.Module) -> None:
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
        module: Any = recipe.build(seed)
    except ExpungeError:
        raise
    except Exception as error:
        finding = f"the function failed ({type(error).__name__}: {first_line(error)})"
        raise SpecError(finding, where=BUILD, allowed="a function that returns a fresh module") from error
    expect(module, nn.Module, BUILD, "a function that returns a fresh torch.nn.Module")
    return module


def unlearn(
    case: Case, method: str, *, after: Unlearned | None = None, budget: int | None = None, **settings: Any
) -> Unlearned:
    """Remove what the model learned from the forget set.

    Args:
        case: The model and the data to forget.
        method: A registered method, or `module:function`.
        after: Result of another method on this case, from which this method starts. By default it starts from the
            original model.
        budget: Upper bound on the per-example gradients of this method alone.
        **settings: The method's settings.

    Returns:
        The unlearned model. After another method, the label and cost include those of both methods.

    Raises:
        ExpungeError: The method or a setting is unknown, the method's needs are not met, or training diverged.
    """
    if after is not None and not isinstance(after, Unlearned):
        raise SpecError(f"found {after!r}", where="after", allowed="what expunge.unlearn returned for this case")
    expect(case, Case, "case", "what expunge.case returned")
    expect(method, str, "method", "a method's name, or module:function")
    # Errors about settings name places such as `scrub.epochs`, so an unknown method is reported first, at `method`.
    registry.load("method", method, where="method")
    part: Any = registry.build("method", method, settings, where=method)
    start, label = (case.original, method) if after is None else (after.model, f"{after.method}_{method}")
    seed = derive(case.seed, "unlearn", label)
    with forked(seed):  # for a plain function, which seeds nothing itself
        # The library's methods copy the model; a function of the user's may change it.
        given = start if isinstance(part, Method) else copied(start)
        done: Unlearned = part(given, case.problem, case.recipe, seed, budget)
    expect(done, Unlearned, method, "expunge.core.case.Unlearned, which a method returns")
    require_independent(done.model, {"your model": case.original}, method)
    if not weights_differ(start, done.model):
        Progress().say(f"{label}: {CHANGED_NOTHING}")
    cost = done.cost if after is None else after.cost + done.cost
    return Unlearned(done.model, label, cost, part, budget, after)


def _pool(
    model: nn.Module, parts: Mapping[str, Collected], objective: Objective | None, workers: int
) -> tuple[Data, dict[str, Tensor]]:
    """All parts under consecutive ids, and the ids of each."""
    inputs, digests = _inputs_of(list(parts.values()), workers)
    targets = _cat([part.targets for part in parts.values()], "targets")
    if objective is None and inferred(inputs, targets) is None and targets.shape[1:] == (1,):
        targets = targets.squeeze(1)  # a column of class indices
    ends = torch.tensor([len(part.targets) for part in parts.values()]).cumsum(0)
    ids = dict(zip(parts, torch.tensor_split(torch.arange(len(targets)), ends[:-1]), strict=True))
    train = torch.cat([ids["forget"], ids["retain"]])
    chosen = objective or inferred(inputs, targets)
    targets = targets if targets.is_floating_point() else targets.long()
    if chosen is None:
        _refuse_one_hot(targets)
    first = torch.arange(min(2, len(targets)))
    conversion = conversion_for(model, inputs[first], chosen.output if chosen else None)
    if conversion is not None:
        inputs = (
            replace(inputs, inputs_of=conversion.apply) if isinstance(inputs, LazyInputs) else conversion.apply(inputs)
        )
    labels = () if chosen is None else _labels(model, Batch(inputs[first], targets[first], first), chosen)
    groups = groups_of_copies(digests)
    data = Data(inputs, targets, train, ids["test"], labels, groups, objective=chosen)
    return data.judged_by(None), ids


def _inputs_of(parts: list[Collected], workers: int) -> tuple[Any, list[bytes]]:
    """The inputs of all parts, and a digest of those of each example."""
    whole = [part.inputs for part in parts if part.inputs is not None]
    if whole:
        inputs = _cat(whole, "inputs")
        return inputs, row_digests(inputs)
    lazy = LazyInputs(ItemInputs(items_of(parts)), workers=workers)
    return lazy, [digest for part in parts for digest in part.digests]


def _refuse_one_hot(targets: Tensor) -> None:
    """Refuse one-hot rows: they may be one class each, or several labels of which one is true."""
    if targets.ndim == 2 and bool(((targets == 0) | (targets == 1)).all() and (targets.sum(1) == 1).all()):
        raise SpecError(
            f"targets {list(targets.shape)} are one-hot",
            where="objective",
            allowed="class indices [n], or an objective",
            remedy='give targets.argmax(1) for one class per example, or objective="multilabel" for several labels',
        )


def _cat(tensors: list[Tensor], what: str) -> Tensor:
    shapes = {tuple(t.shape[1:]) for t in tensors}
    if len(shapes) > 1:
        raise SpecError(f"{what} have shapes {sorted(shapes)}", where="forget, retain, test", allowed="one shape")
    # Data stay on the CPU; batches follow the model.
    return torch.cat([tensor.cpu() for tensor in tensors])


def _labels(model: nn.Module, batch: Batch, objective: Objective) -> tuple[str, ...]:
    """Numbers as names of the classes or tokens, one per output of the model; empty for other objectives."""
    if not objective.provides & {CLASSES, TOKENS}:
        return ()
    if objective.outputs:
        return tuple(map(str, range(objective.outputs)))
    with torch.no_grad():
        logits = guarded(trial := copied(model), batch, lambda: objective.prediction(trial, batch))
    if logits.ndim < 2:
        raise SpecError(
            f"the model returns {list(logits.shape)}",
            where=f"model ({type(model).__name__})",
            allowed="logits [n, c] or [n, t, v], or an object with the attribute .logits",
            remedy="for any other model, pass objective=",
        )
    if CLASSES in objective.provides and logits.shape[-1] == 1:
        raise SpecError(
            "the model has one output, which decides between no classes",
            where=f"model ({type(model).__name__})",
            allowed="one logit per class",
            remedy='for yes or no, give targets [n, 1] and objective="multilabel"',
        )
    return tuple(str(label) for label in range(logits.shape[-1]))
