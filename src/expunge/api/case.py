"""Build a case from your model, data and training, and unlearn on it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from expunge.api.model import in_single_precision, require_module
from expunge.api.objective import objective as named
from expunge.api.parts import expect
from expunge.base import registry
from expunge.base.errors import SpecError
from expunge.base.seeds import derive
from expunge.core.case import Case, Meter, Recipe, Unlearned
from expunge.core.collect import Collected, ItemInputs, collect, collect_lazily, items_of
from expunge.core.data import Batch, Data
from expunge.core.device import placed
from expunge.core.lazy import LazyInputs
from expunge.core.modules import first_parameter, widened
from expunge.core.objective import CLASSES, TOKENS, Objective, inferred
from expunge.core.problem import Problem, require_unretained
from expunge.core.seeding import forked
from expunge.core.texts import refuse_shifted, require_text_model
from expunge.reporting.progress import Progress
from expunge.train.chance import no_better_than_chance


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

    def build(self, seed: int) -> nn.Module:
        """The freshly initialised module of this seed, in single precision if your function makes half precision."""
        with forked(seed):
            return widened(placed(self.make(), self.device))

    def fit(self, module: nn.Module, data: Data, ids: Tensor, seed: int, meter: Meter | None = None) -> nn.Module:
        """Train the module by the user's function on the chosen items; its cost in gradients is not known."""
        with forked(seed):
            self.train(module, Subset(self.items, ids.tolist()))
        return widened(placed(module, self.device))


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
        model: The model that was trained on the forget set. It is never changed. If its weights are in half precision,
            the case holds a copy in single precision, because steps of training round away in half precision.
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
        SpecError: The data do not fit the model or each other; the message says where.
    """
    sources = {"forget": forget, "retain": retain, "test": test} | ({"holdout": holdout} if holdout is not None else {})
    read = collect if in_memory else collect_lazily
    parts = {name: read(source, where=name) for name, source in sources.items()}
    objective = named(objective) if isinstance(objective, str) else objective
    require_module(model)
    model = in_single_precision(model)
    data, ids = _pool(model, parts, objective, workers)
    items = items_of(list(parts.values()))
    trainer = FunctionRecipe(*recipe, items, first_parameter(model).device) if isinstance(recipe, tuple) else recipe
    problem = Problem(data, **ids)  # type: ignore[arg-type]  # four tensors of ids
    with torch.no_grad():
        problem.objective.measure(copy.deepcopy(model).eval(), data.batch(ids["forget"][:2]))
    require_unretained(problem)
    warning = no_better_than_chance(model, problem)
    if warning:
        Progress().say(warning)
    return Case(seed, problem, model, trainer)


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
    done: Unlearned = part(start, case.problem, case.recipe, derive(case.seed, "unlearn", label), budget)
    if after is None:
        return Unlearned(done.model, label, done.cost, part, budget)
    return Unlearned(done.model, label, after.cost + done.cost, part, budget, after)


def _pool(
    model: nn.Module, parts: Mapping[str, Collected], objective: Objective | None, workers: int
) -> tuple[Data, dict[str, Tensor]]:
    """All parts under consecutive ids, and the ids of each."""
    whole = [part.inputs for part in parts.values() if part.inputs is not None]
    lazy = LazyInputs(ItemInputs(items_of(list(parts.values()))), workers=workers)
    inputs = _cat(whole, "inputs") if whole else lazy
    targets = _cat([part.targets for part in parts.values()], "targets")
    ends = torch.tensor([len(part.targets) for part in parts.values()]).cumsum(0)
    ids = dict(zip(parts, torch.tensor_split(torch.arange(len(targets)), ends[:-1]), strict=True))
    train = torch.cat([ids["forget"], ids["retain"]])
    chosen = objective or inferred(inputs, targets)
    targets = targets if targets.is_floating_point() else targets.long()
    if chosen is not None and TOKENS in chosen.provides:
        for name, part in parts.items():
            refuse_shifted(part.inputs, part.targets, where=name)
        require_text_model(model, chosen, inputs, targets)
    first = torch.arange(2)
    labels = () if chosen is None else _labels(model, Batch(inputs[first], targets[:2], first), chosen)
    return Data(inputs, targets, train, ids["test"], labels, objective=chosen).judged_by(None), ids


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
        logits = objective.prediction(copy.deepcopy(model).eval(), batch)
    if logits.ndim < 2:
        raise SpecError(
            f"the model returns {list(logits.shape)}",
            where=f"model ({type(model).__name__})",
            allowed="logits [n, c] or [n, t, v], or an object with the attribute .logits",
            remedy="for any other model, pass objective=",
        )
    return tuple(str(label) for label in range(logits.shape[-1]))
