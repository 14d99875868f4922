"""The unexposed part of the forget set: an attack scores it, and never trains on it or on a copy of it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.core.case import Attacked, Case, Cost, Curve
from expunge.core.problem import Problem
from expunge.train.evaluation import tracked


def allowed(problem: Problem, ids: Tensor) -> Tensor:
    """The ids that an attack may train on: none of the unexposed examples, and none that shares a group with one.

    Raises:
        SpecError: There are ids, but all of them share a group with an unexposed example.
    """
    groups = problem.data.group_of
    kept = ids[~torch.isin(groups(ids), groups(problem.unexposed))]
    if len(ids) and not len(kept):
        raise SpecError(
            "every example that an attack could train on shares a group with a scored forget example",
            where="data.groups",
            allowed="groups of copies and relatives, of which some are outside the forget set",
            remedy="give unrelated examples different groups, or leave the attack out",
        )
    return kept


def known(model: nn.Module, problem: Problem) -> np.ndarray:
    """How much the model knows of each unexposed forget example, `[n]`: see `Objective.known`."""
    return tracked(model, problem, problem.unexposed)


def edited(model: nn.Module, case: Case, edit: Callable[[nn.Module], None]) -> Attacked:
    """The outcome of an attack that changes the weights once and takes no gradient.

    Args:
        model: The attacked model; never changed.
        case: Its case.
        edit: Changes a copy of the model, in evaluation mode, in place.

    Returns:
        The changed copy, with a curve of two points: before and after the edit.
    """
    start, student = time.perf_counter(), copy.deepcopy(model).eval()
    before = known(student, case.problem)
    edit(student)
    values = np.stack([before, known(student.eval(), case.problem)])
    curve = Curve(np.array([0, 1]), values, case.problem.unexposed.numpy())
    return Attacked(student, curve, Cost(0, time.perf_counter() - start))
