"""The contract of a method: how it is called, what it may change, which models it may run, and its budget."""

from __future__ import annotations

from torch import nn

from expunge.base.errors import ExpungeError, MissingError
from expunge.core.case import Unlearned
from expunge.core.method import Method
from expunge.core.modules import shared_storage
from expunge.core.seeding import forked
from expunge.testing._error import ContractError, Fail, failing
from expunge.testing._results import check_result
from expunge.testing._rules import accepted, check_settings, randomness, reasons, require_same, require_same_problem
from expunge.testing._settings import Setting, every_setting
from expunge.testing._state import Snapshot, contents, difference
from expunge.testing._watch import Watch


def check_method(method: Method) -> None:
    """Check a method against its contract.

    The method runs on classifiers (plain, with dropout and batch norm, with frozen parameters, with tied weights, in
    double precision, with example-tied dropout) and on a small language model with tied embeddings, as far as `needs`
    and `check_model` allow. It does not change the input model, the problem or the global random state. The result is
    finite, in evaluation mode, and the same for the same seed. It has the same device, dtype, and frozen and tied
    parameters. It can be stored, and shares no memory with the input. No teacher shares memory with its student. The
    method refuses unmet needs and stays within its budget.

    Frozen parameters may differ if the recipe built the result, because then it contains nothing of the input model.

    Args:
        method: A method whose settings suit a few dozen examples; default numbers of epochs do.

    Raises:
        ContractError: The first broken contract.
    """
    check_settings(method)
    needs = frozenset(getattr(method, "required", frozenset()))
    settings = [s for s in every_setting() if not needs - s.has and not _lacking(method, s)]
    if not settings and method.blocks:
        names = ", ".join(kind.__name__ for kind in method.blocks)
        raise ContractError(method, "blocks", f"no model of this check has {names}", "test it on your own model")
    if not settings:
        allowed = ", ".join(map(repr, sorted(frozenset().union(*(s.has for s in every_setting())))))
        raise ContractError(method, "needs", f"no problem meets {sorted(needs)}", f"name only {allowed}")
    settings = accepted(method, settings)
    _check_needs(method, needs, settings[0])
    _check_blocks(method, settings[0])
    for setting in settings:
        _check_on(method, setting, needs)
    for setting in (settings[0], settings[-1]):
        _check_budget(method, setting, needs)


def _check_on(method: Method, setting: Setting, needs: frozenset[str]) -> None:
    fail, model = failing(method, setting.name), setting.model()
    before, problem = Snapshot(model), contents(setting.problem)
    with Watch(model) as watch:
        first = _unlearn(method, setting, model, needs, start=1)
    require_same(before, model, fail)
    require_same_problem(problem, setting.problem, fail)
    _check_watched(watch, first, fail)
    check_result(first.model, model, setting, fail)
    _check_repeated(first, _unlearn(method, setting, model, needs, start=2), fail)


def _check_watched(watch: Watch, done: Unlearned, fail: Fail) -> None:
    if watch.shared:
        raise fail(
            "a teacher of its own",
            f"two models that ran share the memory of {watch.shared[0]!r} and {len(watch.shared) - 1} more tensors",
            "make the teacher with expunge.core.modules.frozen_copy, or copy.deepcopy: a shallow copy is the student",
        )
    if watch.gradients > done.cost.gradients:
        raise fail(
            "costs are counted",
            f"{done.cost.gradients} per-example gradients were charged, at least {watch.gradients} computed",
            "call job.meter.charge with the number of examples of each step, or use expunge.train.loop.fit",
        )


def _check_repeated(first: Unlearned, second: Unlearned, fail: Fail) -> None:
    different = difference(first.model, second.model)
    if different or first.cost.gradients != second.cost.gradients:
        raise fail(
            "deterministic",
            f"two runs with one seed differ in {different or 'their number of gradients'}",
            "draw from job.generator('what for'), and not from a global generator",
        )
    if shared_storage(first.model, second.model):
        raise fail("a new model each time", "two runs return models that share memory", "keep no model between calls")


def _check_needs(method: Method, needs: frozenset[str], met: Setting) -> None:
    for need in sorted(needs):
        without = next((s for s in every_setting() if need not in s.has), met)
        setting, recipe = (met, None) if need == "recipe" else (without, without.recipe())
        try:
            method(setting.model(), setting.problem, recipe, 0)
        except MissingError:
            continue
        except Exception as error:
            finding = f"without {need!r} it raises {type(error).__name__}: {error}"
        else:
            finding = f"without {need!r} it runs"
        raise ContractError(method, "needs", finding, "override apply and let __call__ refuse it with a MissingError")


def _lacking(method: Method, setting: Setting) -> list[str]:
    with forked():
        return method.missing_blocks(setting.make())


def _check_blocks(method: Method, met: Setting) -> None:
    lacking = next((s for s in every_setting() if s.has == met.has and _lacking(method, s)), None)
    if lacking is None:
        return
    try:
        method(lacking.model(), lacking.problem, lacking.recipe(), 0)
    except MissingError:
        return
    finding = f"without {_lacking(method, lacking)[0]} it runs"
    raise ContractError(method, "blocks", finding, "override apply and let __call__ refuse it with a MissingError")


def _check_budget(method: Method, setting: Setting, needs: frozenset[str]) -> None:
    fail, model = failing(method, setting.name), setting.model()
    full = _unlearn(method, setting, model, needs).cost.gradients
    for budget in sorted({1, max(full // 2, 1), max(full, 1)}):
        try:
            with Watch(model) as watch:
                charged = _unlearn(method, setting, model, needs, budget=budget).cost.gradients
        except ContractError as error:
            # The method may refuse a budget that is too small, with a reason, but not the full budget.
            if isinstance(error.__cause__, ExpungeError) and budget < full:
                continue
            raise
        if max(charged, watch.gradients) > budget:
            raise fail(
                "the budget is an upper bound",
                f"it took {max(charged, watch.gradients)} gradients of {budget}",
                "ask job.meter.affords before each step, or use expunge.train.loop.fit",
            )


def _unlearn(
    method: Method,
    setting: Setting,
    model: nn.Module,
    needs: frozenset[str],
    *,
    budget: int | None = None,
    start: int = 0,
) -> Unlearned:
    fail = failing(method, setting.name)
    recipe = setting.recipe() if "recipe" in needs else None
    with randomness(start, fail), reasons(fail, "name in `needs` what it requires"):
        done = method(model, setting.problem, recipe, 5, budget)
    if not isinstance(done, Unlearned):
        raise fail("returns Unlearned", f"returned {type(done).__name__}", "override apply, not __call__")
    return done
