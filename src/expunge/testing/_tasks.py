"""The contract of a task: the same problem for the same seed, with sets that are consistent."""

from __future__ import annotations

from itertools import chain

import torch

from expunge.base.errors import SpecError
from expunge.core.contracts import Task
from expunge.core.data import Data, tensors_of
from expunge.core.problem import Problem
from expunge.models.gpt import GPT
from expunge.models.mlp import MLP
from expunge.testing._candidates import candidates, with_sets
from expunge.testing._error import ContractError, Fail, failing
from expunge.testing._rules import check_settings, randomness, require_same_problem
from expunge.testing._state import contents
from expunge.train.training import TrainedRecipe, Training


def check_task(task: Task, data: Data | None = None) -> None:
    """Check a task against its contract.

    The task does not change data or global random state. It is deterministic, including its measurements. Forget and
    retain set have no example in common; together they are the training set of the original. No model trains on
    hold-out and test set. No copy of an unexposed forget example is exposed.

    Args:
        task: The task.
        data: Data that suit the task; by default handwritten digits and Python's reference texts are tried.

    Raises:
        ContractError: The first broken contract.
    """
    check_settings(task)
    refusals = []
    for candidate in chain(candidates(data), with_sets() if data is None else ()):
        try:
            _check_on(task, candidate)
        except SpecError as error:
            refusals.append(error)
        else:
            return
    raise ContractError(task, "some data carry it", str(refusals[0]), "pass data= that suit it") from refusals[0]


def _check_on(task: Task, data: Data) -> None:
    fail, before = failing(task, type(data.objective).__name__), contents(data)
    architecture = GPT(width=8, layers=1, heads=2) if data.has_tokens else MLP(widths=[8])
    recipe = TrainedRecipe(architecture, Training(epochs=1), data)
    problems = []
    for start in (1, 2):
        with randomness(start, fail):
            problems.append(task(data, 5, task.measure(data, recipe, 5)))
    require_same_problem(before, data, fail)
    if contents(problems[0]) != contents(problems[1]):
        raise fail("deterministic", "two problems with one seed differ", "draw from a torch.Generator with that seed")
    _check_sets(problems[0], fail)
    _check_forget_set(problems[0], fail)


def _check_sets(problem: Problem, fail: Fail) -> None:
    if torch.isin(problem.forget, problem.retain).any():
        raise fail("forget and retain are disjoint", "they have ids in common", "retain what is not forgotten")
    if set(problem.train.tolist()) != set(problem.data.train.tolist()):
        raise fail(
            "forget and retain cover the training set",
            f"together {len(problem.train)} ids, training examples are {len(problem.data.train)}",
            "retain every training example that is not forgotten, and add planted ones to data.train",
        )
    for name in ("test", "holdout"):
        if torch.isin(getattr(problem, name), problem.train).any():
            raise fail(f"nobody trains on the {name} set", "ids are among those trained on", "take them out of one")
    if torch.isin(problem.holdout, problem.test).any():
        raise fail("hold-out and test set are disjoint", "they have ids in common", "take them out of one of them")
    if not torch.isin(problem.corrupted, problem.train).all():
        raise fail("corruption is trained on", "corrupted ids are not", "name only training examples in `corrupted`")


def _check_forget_set(problem: Problem, fail: Fail) -> None:
    unexposed, exposed = problem.unexposed, problem.exposed
    complete = set(unexposed.tolist()) | set(exposed.tolist()) == set(problem.forget.tolist())
    if not complete or torch.isin(unexposed, exposed).any():
        raise fail("exposed and held-out split the forget set", "they do not", "leave the split to Problem")
    # Copies without a common group can only be recognised by their content.
    scored = {_bytes(problem.data, index) for index in unexposed.tolist()}
    copies = [index for index in exposed.tolist() if _bytes(problem.data, index) in scored]
    if torch.isin(problem.data.group_of(exposed), problem.data.group_of(unexposed)).any() or copies:
        raise fail(
            "copies stay together",
            "an attack may train on a copy, or on a member of the group, of an example that audits score",
            "give copies the same id in data.groups",
        )


def _bytes(data: Data, index: int) -> bytes:
    inputs = b"".join(tensor[index].numpy().tobytes() for tensor in tensors_of(data.inputs).values())
    return inputs + bytes(data.targets[index].numpy().tobytes())
