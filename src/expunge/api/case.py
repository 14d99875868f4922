"""Your model, your data and your training as a case, and the first verb on it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from expunge.api.objective import objective as named
from expunge.api.parts import expect
from expunge.base import registry
from expunge.base.errors import SpecError
from expunge.base.seeds import derive
from expunge.core.case import Case, Meter, Recipe, Unlearned
from expunge.core.collect import Collected, collect, items_of
from expunge.core.data import Batch, Data
from expunge.core.device import placed
from expunge.core.modules import first_parameter
from expunge.core.objective import CLASSES, TOKENS, Objective, inferred
from expunge.core.problem import Problem
from expunge.core.seeding import forked


@dataclass(frozen=True)
class FunctionRecipe:
    """A recipe made of two functions of yours.

    Args:
        make: Returns a freshly initialised module.
        train: `train(module, dataset)` trains it in place on a map-style data set of your own items, by your own loop.
        items: The items by id.
        device: Where models are built, and where they end: that of the user's own model.
    """

    make: Callable[[], nn.Module]
    train: Callable[[nn.Module, Dataset[Any]], object]
    items: Dataset[Any]
    device: torch.device | str = "cpu"

    def build(self, seed: int) -> nn.Module:
        """The freshly initialised module of this seed."""
        with forked(seed):
            return placed(self.make(), self.device)

    def fit(self, module: nn.Module, data: Data, ids: Tensor, seed: int, meter: Meter | None = None) -> nn.Module:
        """Hand the module and the chosen items to the user's function; what it costs in gradients is not known."""
        with forked(seed):
            self.train(module, Subset(self.items, ids.tolist()))
        return placed(module, self.device)


Functions = tuple[Callable[[], nn.Module], Callable[[nn.Module, Dataset[Any]], object]]
"""`(build, train)`: a fresh module, and your own training of a module on a data set of your items."""


def recipe(build: Callable[[], nn.Module], train: Callable[[nn.Module, Dataset[Any]], object]) -> Functions:
    """How your model is trained, for `case`.

    Args:
        build: Returns a freshly initialised module.
        train: `train(module, dataset)` trains the module in place.

    Returns:
        What `case(recipe=...)` takes.
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
    seed: int = 0,
) -> Case:
    """Your model and your data as a case.

    Args:
        model: The model that knows the forget set; never changed.
        forget: What must go: a data set, a pair of tensors or NumPy arrays, or batches; see `core.collect`.
        retain: What the model was trained on besides.
        test: Unseen data that utility is measured on.
        holdout: Optional unseen examples that resemble the forget set; they stand in for retrained models where there
            is no recipe.
        recipe: How such models are trained: `expunge.recipe(build, train)`, or an object with `build` and `fit`.
        objective: What the model is judged by: a name such as `multilabel`, or with settings
            `expunge.objective("segmentation", ignore=255)`; inferred from the targets where that is obvious.
        seed: Everything random follows from it.

    Returns:
        The case.

    Raises:
        SpecError: The data do not fit the model or each other; says where.
    """
    sources = {"forget": forget, "retain": retain, "test": test} | ({"holdout": holdout} if holdout is not None else {})
    parts = {name: collect(source, where=name) for name, source in sources.items()}
    objective = named(objective) if isinstance(objective, str) else objective
    data, ids = _pool(model, parts, objective)
    items = items_of(list(parts.values()))
    made = FunctionRecipe(*recipe, items, first_parameter(model).device) if isinstance(recipe, tuple) else recipe
    problem = Problem(data, **ids)  # type: ignore[arg-type]  # four tensors of ids
    with torch.no_grad():
        problem.objective.measure(copy.deepcopy(model).eval(), data.batch(ids["forget"][:2]))
    return Case(seed, problem, model, made)


def unlearn(
    case: Case, method: str, *, after: Unlearned | None = None, budget: int | None = None, **settings: Any
) -> Unlearned:
    """Take the forget set out.

    Args:
        case: What to forget, and the model.
        method: A registered method, or `module:function`.
        after: What another method returned for this case, to start from; the original by default.
        budget: Upper bound in per-example gradients, of this method alone.
        **settings: The method's settings.

    Returns:
        The unlearned model; after another method under both names, with the cost of both.

    Raises:
        ExpungeError: An unknown method or setting, unmet needs, or training that diverged.
    """
    if after is not None and not isinstance(after, Unlearned):
        raise SpecError(f"found {after!r}", where="after", allowed="what expunge.unlearn returned for this case")
    expect(case, Case, "case", "what expunge.case returned")
    expect(method, str, "method", "a method's name, or module:function")
    # Settings are told as `scrub.epochs`; a name that is none has no such place.
    registry.load("method", method, where="method")
    part: Any = registry.build("method", method, settings, where=method)
    start, label = (case.original, method) if after is None else (after.model, f"{after.method}_{method}")
    done: Unlearned = part(start, case.problem, case.recipe, derive(case.seed, "unlearn", label), budget)
    if after is None:
        return Unlearned(done.model, label, done.cost, part, budget)
    return Unlearned(done.model, label, after.cost + done.cost, part, budget, after)


def _pool(
    model: nn.Module, parts: Mapping[str, Collected], objective: Objective | None
) -> tuple[Data, dict[str, Tensor]]:
    """All parts under consecutive ids, and the ids of each."""
    inputs = _cat([part.inputs for part in parts.values()], "inputs")
    targets = _cat([part.targets for part in parts.values()], "targets")
    ends = torch.tensor([len(part.inputs) for part in parts.values()]).cumsum(0)
    ids = dict(zip(parts, torch.tensor_split(torch.arange(len(inputs)), ends[:-1]), strict=True))
    train = torch.cat([ids["forget"], ids["retain"]])
    given = objective or inferred(inputs, targets)
    targets = targets if targets.is_floating_point() else targets.long()
    labels = () if given is None else _labels(model, Batch(inputs[:2], targets[:2], torch.arange(2)), given)
    return Data(inputs, targets, train, ids["test"], labels, objective=given).judged_by(None), ids


def _cat(tensors: list[Tensor], what: str) -> Tensor:
    shapes = {tuple(t.shape[1:]) for t in tensors}
    if len(shapes) > 1:
        raise SpecError(f"{what} have shapes {sorted(shapes)}", where="forget, retain, test", allowed="one shape")
    # Data stay on the CPU; batches follow the model.
    return torch.cat([tensor.cpu() for tensor in tensors])


def _labels(model: nn.Module, batch: Batch, objective: Objective) -> tuple[str, ...]:
    """Numbers for the classes or tokens that the model's last layer has outputs for; none where labels mean others."""
    if not objective.provides & {CLASSES, TOKENS}:
        return ()
    with torch.no_grad():
        logits = objective.prediction(copy.deepcopy(model).eval(), batch)
    if logits.ndim < 2:
        raise SpecError(
            f"the model returns {list(logits.shape)}",
            where=f"model ({type(model).__name__})",
            allowed="logits [n, c] or [n, t, v], or an object that carries them as .logits",
            remedy="pass objective= for anything else",
        )
    return tuple(str(label) for label in range(logits.shape[-1]))
