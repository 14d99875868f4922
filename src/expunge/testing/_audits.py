"""The contract of an audit: it changes nothing, and what it scores is chosen without looking at the model."""

from __future__ import annotations

from itertools import islice

import numpy as np
import torch
from torch import nn

from expunge.base.errors import SpecError
from expunge.core.case import Case, Shadows
from expunge.core.contracts import Audit
from expunge.core.problem import Problem
from expunge.evidence.scores import Scores, dumps
from expunge.testing._error import Fail, failing
from expunge.testing._rules import accepted, check_settings, randomness, reasons, require_same, require_same_problem
from expunge.testing._settings import (
    DOUBLE,
    NUMBERS,
    REGULARISED,
    TOKENS,
    Setting,
    every_setting,
    scenes_setting,
    whole_class,
)
from expunge.testing._state import Snapshot, contents


def check_audit(audit: Audit) -> None:
    """Check an audit against its contract, on the kinds of data and models that it can measure.

    The audit does not change model, original, problem or global random state, nor the modes of submodules. It is
    deterministic. Each score is finite, has a role, and belongs to the examples of its split (for the forget set, its
    unexposed part). The examples are the same for every model.

    Raises:
        ContractError: The first broken contract.
    """
    check_settings(audit)
    needs: frozenset[str] = getattr(audit, "needs", frozenset())
    candidates = [s for s in every_setting() if s.name in (REGULARISED, DOUBLE, TOKENS, NUMBERS)]
    suitable = [s for s in candidates if needs <= s.problem.objective.provides and _suits(audit, s)]
    others = (setting for setting in (whole_class(), scenes_setting()) if _suits(audit, setting))
    for setting in accepted(audit, suitable or list(islice(others, 1))):
        _check_on(audit, setting)


def _suits(audit: Audit, setting: Setting) -> bool:
    """Whether `check` accepts the problem. An audit may refuse all but one kind, such as the forgetting of a class."""
    try:
        if isinstance(audit, Audit):
            audit.check(setting.problem)
    except SpecError:
        return False
    return True


def _check_on(audit: Audit, setting: Setting) -> None:
    fail, original, model = failing(audit, setting.name), setting.model(), setting.model(seed=1)
    # One submodule in training mode, as after a partial freeze: setting one mode for all would lose it.
    next(model.children()).train()
    pairs = audit.shadow_pairs
    shadows = Shadows(*([setting.model(seed=i) for i in range(start, start + pairs)] for start in (2, 2 + pairs)))
    case = Case(0, setting.problem, original, setting.recipe(), shadows=shadows if pairs else None)
    first = _measure(audit, model, case, fail)
    _check_scores(first, setting.problem, fail)
    with randomness(2, fail):
        second, other = audit(model, case, 5), audit(original, case, 5)
    if dumps(first) != dumps(second):
        raise fail("deterministic", "two audits with one seed differ", "draw from a torch.Generator seeded with `seed`")
    if [(s.key, s.ids.tolist()) for s in first] != [(s.key, s.ids.tolist()) for s in other]:
        raise fail("the same examples for every model", "ids depend on the model", "choose examples by the seed alone")


def _measure(audit: Audit, model: nn.Module, case: Case, fail: Fail) -> list[Scores]:
    """The audit's scores; neither the two models nor the problem change."""
    models = (model, case.original)
    states, problem_before = [Snapshot(m) for m in models], contents(case.problem)
    with randomness(1, fail), reasons(fail, "measure whatever provides its `needs`"):
        scores = audit(model, case, 5)
    for state, checked in zip(states, models, strict=True):
        require_same(state, checked, fail)
    require_same_problem(problem_before, case.problem, fail)
    return scores


def _check_scores(results: list[Scores], problem: Problem, fail: Fail) -> None:
    if not isinstance(results, list) or not results or not all(isinstance(scores, Scores) for scores in results):
        raise fail("returns scores", f"returned {results!r}", "return a list of expunge.evidence.scores.Scores")
    if len({scores.key for scores in results}) < len(results):
        raise fail("one entry per metric and split", "one occurs twice", "give each its own metric or split")
    for scores in results:
        where = f"{scores.metric} ({scores.split})"
        if not np.isfinite(scores.values).all():
            raise fail("finite", f"{where} has a value that is not finite", "leave such examples out")
        if scores.reduce == "mean":
            _check_ids(scores, where, problem, fail)


def _check_ids(scores: Scores, where: str, problem: Problem, fail: Fail) -> None:
    splits = {
        "forget": ("problem.unexposed", problem.unexposed),
        "retain": ("problem.retain", problem.retain),
        "test": ("problem.test", problem.test),
        "holdout": ("problem.holdout", problem.holdout),
    }
    name, ids = splits.get(scores.split, ("the data", torch.arange(len(problem.data))))
    foreign = scores.ids[~np.isin(scores.ids, ids.numpy())]
    if foreign.size:
        raise fail("ids belong to the split", f"{where} scores id {foreign[0]}", f"score ids of {name}")
    if np.unique(scores.ids).size < scores.ids.size:
        raise fail("each example once", f"{where} scores an id twice", "score each example once")
    groups = problem.data.groups
    if groups is not None and (scores.group is None or not np.array_equal(scores.group, groups.numpy()[scores.ids])):
        raise fail("groups are passed on", f"{where} does not say which examples are copies", "set Scores.group")
