"""Build a case from your model, data and training, and unlearn on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from expunge.api.model import in_single_precision, require_module
from expunge.api.objective import objective as named
from expunge.api.parts import ADAPTER, expect
from expunge.api.pool import pooled
from expunge.api.recipe import Functions, check_recipe, recipe_of
from expunge.base import registry
from expunge.base.errors import SpecError
from expunge.base.seeds import derive
from expunge.core.adapter import Adapter, refuse_unadaptable
from expunge.core.case import Case, Recipe, Unlearned
from expunge.core.collect import Collected, collect, collect_lazily, items_of
from expunge.core.copies import say_copies
from expunge.core.first_pass import EXAMPLES, copied, first_pass, unwrapped
from expunge.core.method import Method, original_of
from expunge.core.modules import weights_differ
from expunge.core.objective import Objective
from expunge.core.own_training import require_independent
from expunge.core.problem import Problem, require_unretained
from expunge.core.refusals import refuse_mixing
from expunge.core.seeding import forked
from expunge.evidence.reasons import CHANGED_NOTHING
from expunge.reporting.progress import Progress
from expunge.train import adapting
from expunge.train.chance import no_better_than_chance
from expunge.train.loop import evaluation_size


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
            the case holds a copy in single precision, because steps of training round away in half precision. Of a
            parallel or compiled module, the module inside is used.
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
        SpecError: The data do not fit the model or each other, the model's answer on an example depends on the rest of
            its batch, the model cannot be copied, it returns probabilities, or the recipe builds modules that are not
            like it or share memory; the message says where.
    """
    sources = {"forget": forget, "retain": retain, "test": test} | ({"holdout": holdout} if holdout is not None else {})
    require_module(model)
    given, objective = unwrapped(model), named(objective) if isinstance(objective, str) else objective
    model = in_single_precision(given)
    parts = {name: _read(source, name, seed, in_memory=in_memory) for name, source in sources.items()}
    data, ids = pooled(model, parts, objective, workers)
    trainer = recipe_of(recipe, items_of(list(parts.values())), given)
    problem = Problem(data, **ids)  # type: ignore[arg-type]  # four tensors of ids
    few = torch.cat([ids["forget"], ids["test"]])[: min(EXAMPLES, evaluation_size(data))]
    first_pass(model, problem.objective, data.batch(few))
    refuse_mixing(model, problem.objective, data, torch.stack([ids[name][0] for name in ("forget", "retain", "test")]))
    if trainer is not None:
        check_recipe(trainer, model)
    require_unretained(problem)
    say_copies(problem)
    warning = no_better_than_chance(model, problem)
    if warning:
        Progress().say(warning)
    return Case(seed, problem, model, trainer)


def _read(source: Any, name: str, seed: int, *, in_memory: bool) -> Collected:
    """One of the data sets. If its items are random, their draws follow from the seed of the case."""
    with forked(derive(seed, "data", name)):
        return (collect if in_memory else collect_lazily)(source, where=name)


def unlearn(
    case: Case,
    method: str,
    *,
    after: Unlearned | None = None,
    budget: int | None = None,
    adapter: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Unlearned:
    """Remove what the model learned from the forget set.

    Args:
        case: The model and the data to forget.
        method: A registered method, or `module:function`.
        after: Result of another method on this case, from which this method starts. By default it starts from the
            original model. A method that measures from the original, or distils from it, still uses `case.original`.
        budget: Upper bound on the per-example gradients of this method alone.
        adapter: Train a low-rank adapter instead of the weights, and merge it at the end: a table with `rank`, `alpha`
            and `targets`, `{}` for the defaults; see `core.adapter.Adapter`.
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
    expect({} if adapter is None else adapter, Mapping, f"{method}.adapter", ADAPTER)
    lora = None if adapter is None else Adapter.from_table(adapter, where=f"{method}.adapter")
    if lora is not None:
        refuse_unadaptable(part, method)
    start, label = (case.original, method) if after is None else (after.model, f"{after.method}_{method}")
    seed = derive(case.seed, "unlearn", label)
    with forked(seed):  # for a plain function, which seeds nothing itself
        # The library's methods copy the model; a function of the user's may change it.
        given = start if isinstance(part, Method) or lora is not None else copied(start)
        given = adapting.given(given, lora, seed, method)
        original = original_of(part, adapting.seen(case.original, lora))
        done: Unlearned = part(given, case.problem, case.recipe, seed, budget, **original)
    expect(done, Unlearned, method, "expunge.core.case.Unlearned, which a method returns")
    require_independent(done.model, {"your model": case.original}, method)
    model, _ = adapting.taken(done.model, lora, case.problem, method)
    if not weights_differ(start, model):
        Progress().say(f"{label}: {CHANGED_NOTHING}")
    cost = done.cost if after is None else after.cost + done.cost
    return Unlearned(model, label, cost, part, budget, after, None if lora is None else lora.settings())
