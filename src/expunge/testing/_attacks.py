"""The contract of an attack: which data it may train on, and that its curve can be reproduced."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from expunge.base.errors import MissingError
from expunge.core.case import Attacked, Case, Curve
from expunge.core.contracts import Attack
from expunge.core.modules import shared_storage
from expunge.core.problem import Problem
from expunge.testing._error import ContractError, Fail, failing
from expunge.testing._rules import check_settings, randomness, reasons, require_same, require_same_problem
from expunge.testing._settings import REGULARISED, TOKENS, Setting, every_setting
from expunge.testing._state import Snapshot, contents, difference
from expunge.testing._watch import Watch
from expunge.train.evaluation import tracked


def check_attack(attack: Attack) -> None:
    """Check an attack against its contract, on a classifier and on a small language model, both with groups.

    The attack does not change model, problem or global random state. It is deterministic. It never trains on unexposed
    forget examples or on members of their groups, and never runs them in training mode. The curve starts with the input
    model, and has the right shape and values in [0, 1]. The returned model is the one at the curve's peak.

    By a `MissingError` an attack may refuse a model that lacks what it changes, such as batch norm; but not all models.

    Raises:
        ContractError: The first broken contract.
    """
    check_settings(attack)
    refusals = []
    settings = [s for s in every_setting() if s.name in (REGULARISED, TOKENS)]
    for setting in settings:
        try:
            _check_on(attack, setting)
        except ContractError as error:
            if not isinstance(error.__cause__, MissingError):
                raise
            refusals.append(error)
    if len(refusals) == len(settings):
        raise refusals[0]


def _check_on(attack: Attack, setting: Setting) -> None:
    fail, model, problem = failing(attack, setting.name), setting.model(), setting.problem
    before, problem_before = Snapshot(model), contents(problem)
    with Watch(model, problem.data.batch(_forbidden(problem)).inputs) as watch:
        first = _attack(attack, setting, model, fail, start=1)
    require_same(before, model, fail)
    require_same_problem(problem_before, problem, fail)
    _check_watched(watch, fail)
    _check_curve(first.curve, problem, fail)
    _check_ends(first, model, problem, fail)
    second = _attack(attack, setting, model, fail, start=2)
    different = difference(first.model, second.model)
    if different or not np.array_equal(first.curve.values, second.curve.values):
        raise fail(
            "deterministic",
            f"two attacks with one seed differ in {different or 'their curves'}",
            "draw from expunge.core.generators.generator_of(seed, 'what for')",
        )


def _attack(attack: Attack, setting: Setting, model: nn.Module, fail: Fail, start: int) -> Attacked:
    with randomness(start, fail), reasons(fail, "run it on a classifier and on a language model"):
        done = attack(model, Case(0, setting.problem, model, setting.recipe()), 5)
    if not isinstance(done, Attacked):
        raise fail("returns Attacked", f"returned {type(done).__name__}", "see expunge.core.case.Attacked")
    return done


def _forbidden(problem: Problem) -> Tensor:
    """Ids of unexposed forget examples and of all members of their groups."""
    every = torch.arange(len(problem.data))
    return every[torch.isin(problem.data.group_of(every), problem.data.group_of(problem.unexposed))]


def _check_watched(watch: Watch, fail: Fail) -> None:
    if watch.trained_on_watched:
        raise fail(
            "held-out examples are not trained on",
            f"{watch.trained_on_watched} times a gradient came from a held-out example or one of its group",
            "train on problem.retain and problem.exposed without the groups of problem.unexposed",
        )
    if watch.watched_in_training:
        raise fail(
            "held-out examples are seen in evaluation mode",
            f"{watch.watched_in_training} of them were run in training mode, where batch norm learns from them",
            "call model.eval() before measuring and model.train() after",
        )


def _check_curve(curve: Curve, problem: Problem, fail: Fail) -> None:
    count, remedy = len(problem.unexposed), "see expunge.core.case.Curve"
    if curve.values.ndim != 2 or curve.values.shape != (len(curve.steps), count) or len(curve.steps) < 2:
        shapes = f"steps {curve.steps.shape} and values {curve.values.shape} for {count} held-out examples"
        raise fail("shape of the curve", shapes, "record at least one point after the first, on every example")
    if curve.steps[0] != 0 or (np.diff(curve.steps) <= 0).any():
        raise fail("steps of the curve", f"found {curve.steps.tolist()}", "begin with 0 and increase")
    if sorted(curve.ids.tolist()) != sorted(problem.unexposed.tolist()):
        raise fail("ids of the curve", "they are not those of problem.unexposed", remedy)
    if not ((curve.values >= 0) & (curve.values <= 1)).all():
        raise fail("values of the curve", "some are outside [0, 1]", remedy)


def _check_ends(done: Attacked, model: nn.Module, problem: Problem, fail: Fail) -> None:
    """The attacked model shares no memory with the input model, and both have the values that the curve says."""
    if any(module.training for module in done.model.modules()):
        raise fail("evaluation mode", "the attacked model is in training mode", "return model.eval()")
    if shared_storage(done.model, model):
        raise fail("a model of its own", "the attacked model is the input's memory", "attack copy.deepcopy(model)")
    curve, ids = done.curve, torch.from_numpy(done.curve.ids)
    for point, name, end in ((0, "first point", model), (curve.peak, "peak", done.model)):
        if not np.array_equal(tracked(end, problem, ids), curve.values[point]):
            raise fail(
                f"the {name} can be reproduced",
                f"auditing the {'model as it came' if point == 0 else 'returned model'} gives other values",
                "measure in evaluation mode, and return the weights of the earliest point with the highest mean",
            )
