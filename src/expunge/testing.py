"""Contract checks for parts, the library's own and yours: `check_method(MyMethod())` in a test of your package.

Each check runs the part on small made-up problems and raises a `ContractError` that names the contract, what was found
and what to do. What a contract says is a property of the part's outside: nothing in it is mocked or replaced.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from expunge.base.errors import ExpungeError, MissingError, SpecError
from expunge.base.part import Part
from expunge.core import checkpoint
from expunge.core.case import Attacked, Case, Recipe, Shadows, Unlearned, train_model
from expunge.core.contracts import Architecture, Attack, Audit, Method, Source, Task
from expunge.core.data import IGNORE, Data
from expunge.core.modules import first_parameter, shared_storage, state_digest
from expunge.core.objective import infer_objective, knows
from expunge.core.problem import Problem
from expunge.evidence.scores import Scores, dumps
from expunge.models.gpt import GPT
from expunge.models.mlp import MLP
from expunge.train.loop import in_order
from expunge.train.training import TrainedRecipe, Training

__all__ = [
    "ContractError",
    "check_attack",
    "check_audit",
    "check_data",
    "check_method",
    "check_model",
    "check_task",
]


class ContractError(AssertionError):
    """A part breaks a contract.

    Args:
        part: What was checked.
        contract: The rule that is broken, in a few words.
        finding: What was found.
        remedy: What to do about it.
    """

    def __init__(self, part: object, contract: str, finding: str, remedy: str) -> None:
        name = type(part).__name__ if is_dataclass(part) else getattr(part, "__name__", type(part).__name__)
        super().__init__(f"{name} breaks the contract {contract!r}: {finding}; {remedy}")
        self.contract, self.finding, self.remedy = contract, finding, remedy


# --- Methods ---------------------------------------------------------------------------------------------------------


def check_method(method: Method) -> None:
    """Hold a method against its contract.

    On classifiers - plain, with dropout and batch norm, with frozen parameters, with tied weights, in double
    precision - and on a small language model with tied embeddings, as far as `needs` allow: the input model, the
    problem and the global random state stay untouched; the result is finite, in evaluation mode, the same for the same
    seed, of the same device and dtype, with the same parameters frozen and tied, can be stored, and shares no memory
    with the input; no teacher shares memory with its student; needs and budget are honoured.

    Frozen parameters may differ where the result is a model that the recipe built: nothing of the input is in it.

    Args:
        method: Settings must suit a few dozen examples; defaults that count epochs do.

    Raises:
        ContractError: The first contract that is broken.
    """
    _check_settings(method)
    needs = frozenset(getattr(method, "needs", frozenset()))
    settings = [s for s in _settings() if not needs - {"recipe", s.problem.data.kind}]
    if not settings:
        raise ContractError(
            method, "needs", f"no problem meets {sorted(needs)}", "name only 'recipe', 'classes' or 'tokens'"
        )
    _check_needs(method, needs, settings[0])
    for setting in settings:
        _check_method_on(method, setting, needs)
    for setting in (settings[0], settings[-1]):
        _check_budget(method, setting, needs)


def _check_method_on(method: Method, setting: _Setting, needs: frozenset[str]) -> None:
    def fail(contract: str, finding: str, remedy: str) -> ContractError:
        return ContractError(method, contract, f"on {setting.name}, {finding}", remedy)

    model = setting.model()
    before, problem = _Snapshot(model), _contents(setting.problem)
    with _Watch(model) as watch:
        first = _unlearn(method, setting, model, needs, start=1)
    _require_same(before, model, fail)
    _require_same_problem(problem, setting.problem, fail)
    if watch.shared:
        raise fail(
            "a teacher of its own",
            f"two models that ran share the memory of {watch.shared[0]!r} and {len(watch.shared) - 1} more tensors",
            "make the teacher with expunge.core.modules.frozen_copy, or copy.deepcopy: a shallow copy is the student",
        )
    if watch.gradients > first.cost.gradients:
        raise fail(
            "costs are counted",
            f"{first.cost.gradients} per-example gradients were charged, at least {watch.gradients} computed",
            "call meter.charge with the number of examples of each step, or use expunge.train.loop.fit",
        )
    _check_result(first, before, setting, watch, fail)
    second = _unlearn(method, setting, model, needs, start=2)
    different = _difference(first.model, second.model)
    if different or first.cost.gradients != second.cost.gradients:
        raise fail(
            "deterministic",
            f"two runs with one seed differ in {different or 'their number of gradients'}",
            "draw from a torch.Generator seeded with expunge.base.seeds.derive(seed, 'what for')",
        )
    if shared_storage(first.model, second.model):
        raise fail("a new model each time", "two runs return models that share memory", "keep no model between calls")


def _check_result(done: Unlearned, before: _Snapshot, setting: _Setting, watch: _Watch, fail: _Fail) -> None:
    result = done.model
    for name, tensor in _named(result).items():
        if not torch.isfinite(tensor).all():
            raise fail("finite", f"{name!r} has a value that is not finite", "stop at the first loss that is no number")
    training = [name or "the model itself" for name, module in result.named_modules() if module.training]
    if training:
        raise fail("evaluation mode", f"{training[0]} is in training mode", "return model.eval()")
    shared = shared_storage(result, before.model)
    if shared:
        raise fail("a model of its own", f"{shared[0]!r} is the input's memory", "work on copy.deepcopy(model)")
    _check_kind_kept(result, before, fail)
    if not any(shared_storage(result, built) for built in setting.built):
        _check_frozen(result, before, fail)
    if _ties(result) != _ties(before.model):
        raise fail(
            "ties are kept",
            f"tied parameters were {_ties(before.model) or 'none'}, are {_ties(result) or 'none'}",
            "change parameters in place; assigning a new nn.Parameter cuts the tie",
        )
    _check_stored(result, setting, fail)


def _check_kind_kept(result: nn.Module, before: _Snapshot, fail: _Fail) -> None:
    wanted = first_parameter(before.model)
    for name, found in result.named_parameters():
        if found.is_floating_point() and (found.dtype, found.device) != (wanted.dtype, wanted.device):
            raise fail(
                "device and dtype are kept",
                f"{name!r} became {found.dtype} on {found.device}, the input is {wanted.dtype} on {wanted.device}",
                "make tensors with .to(parameter), not .float()",
            )


def _check_frozen(result: nn.Module, before: _Snapshot, fail: _Fail) -> None:
    remedy = "train expunge.core.modules.trainable(student) only, and leave requires_grad as it is"
    found = dict(result.named_parameters())
    for name, parameter in before.model.named_parameters():
        if name not in found:
            raise fail("the same parameters", f"{name!r} is gone", "return a model of the input's architecture")
        if found[name].requires_grad != parameter.requires_grad:
            became = "trainable" if found[name].requires_grad else "frozen"
            raise fail("frozen stays frozen", f"{name!r} became {became}", remedy)
        if not parameter.requires_grad and not torch.equal(found[name], parameter):
            raise fail("frozen stays frozen", f"the frozen {name!r} changed", remedy)


def _check_stored(result: nn.Module, setting: _Setting, fail: _Fail) -> None:
    """A run stores each result as weights and reads them into a model that the recipe built."""
    with torch.random.fork_rng(devices=[]):
        fresh = setting.make()
    try:
        stored = checkpoint.restore(fresh, checkpoint.dump(result), "result").eval()
    except (SpecError, RuntimeError) as error:
        raise fail("can be stored", str(error), "return a model whose state fits the recipe's architecture") from error
    if not np.array_equal(_logits(stored, setting.problem), _logits(result, setting.problem), equal_nan=True):
        raise fail(
            "can be stored",
            "stored and read again it answers otherwise",
            "keep everything that it computes with in parameters and buffers",
        )


def _check_needs(method: Method, needs: frozenset[str], met: _Setting) -> None:
    kinds = {s.problem.data.kind: s for s in _settings()}
    other = {"classes": kinds["tokens"], "tokens": kinds["classes"]}
    for need in sorted(needs):
        setting, recipe = (met, None) if need == "recipe" else (other[need], other[need].recipe())
        try:
            method(setting.model(), setting.problem, recipe, 0)
        except MissingError:
            continue
        except Exception as error:
            finding = f"without {need!r} it raises {type(error).__name__}: {error}"
        else:
            finding = f"without {need!r} it runs"
        raise ContractError(method, "needs", finding, "override apply and let __call__ refuse it with a MissingError")


def _check_budget(method: Method, setting: _Setting, needs: frozenset[str]) -> None:
    model = setting.model()
    full = _unlearn(method, setting, model, needs).cost.gradients
    for budget in sorted({1, max(full // 2, 1), max(full, 1)}):
        try:
            with _Watch(model) as watch:
                found = _unlearn(method, setting, model, needs, budget=budget).cost.gradients
        except ContractError as error:
            # Too small a budget may be refused with a reason, the full one may not.
            if isinstance(error.__cause__, ExpungeError) and budget < full:
                continue
            raise
        if max(found, watch.gradients) > budget:
            raise ContractError(
                method,
                "the budget is an upper bound",
                f"on {setting.name}, it took {max(found, watch.gradients)} gradients of {budget}",
                "ask meter.affords before each step, or use expunge.train.loop.fit",
            )


def _unlearn(
    method: Method,
    setting: _Setting,
    model: nn.Module,
    needs: frozenset[str],
    *,
    budget: int | None = None,
    start: int = 0,
) -> Unlearned:
    def fail(contract: str, finding: str, remedy: str) -> ContractError:
        return ContractError(method, contract, f"on {setting.name}, {finding}", remedy)

    recipe = setting.recipe() if "recipe" in needs else None
    with _randomness(start, fail), _reasons(fail, "name in `needs` what it cannot do without"):
        done = method(model, setting.problem, recipe, 5, budget)
    if not isinstance(done, Unlearned):
        raise fail("returns Unlearned", f"returned {type(done).__name__}", "override apply, not __call__")
    return done


# --- Attacks ---------------------------------------------------------------------------------------------------------


def check_attack(attack: Attack) -> None:
    """Hold an attack against its contract, on a classifier and on a small language model, both with groups.

    Model, problem and global random state stay untouched; it is deterministic; no held-out forget example, nor one of
    a held-out example's group, is trained on or run in training mode; the curve begins with the model as it came, has
    its shape and values in [0, 1]; and the returned model is the one at the curve's peak.

    A model that lacks what the attack changes, as batch norm, may be refused with a `MissingError`, but not each model.

    Raises:
        ContractError: The first contract that is broken.
    """
    _check_settings(attack)
    refusals = []
    settings = [s for s in _settings() if s.name in (_REGULARISED, _TOKENS)]
    for setting in settings:
        try:
            _check_attack_on(attack, setting)
        except ContractError as error:
            if not isinstance(error.__cause__, MissingError):
                raise
            refusals.append(error)
    if len(refusals) == len(settings):
        raise refusals[0]


def _check_attack_on(attack: Attack, setting: _Setting) -> None:
    def fail(contract: str, finding: str, remedy: str) -> ContractError:
        return ContractError(attack, contract, f"on {setting.name}, {finding}", remedy)

    model, problem = setting.model(), setting.problem
    before, contents = _Snapshot(model), _contents(problem)
    with _Watch(model, problem.data.inputs[_forbidden(problem)]) as watch:
        first = _attack(attack, setting, model, fail, start=1)
    _require_same(before, model, fail)
    _require_same_problem(contents, problem, fail)
    if watch.trained_on_watched:
        raise fail(
            "held-out examples are not trained on",
            f"{watch.trained_on_watched} times a gradient came from a held-out example or one of its group",
            "train on problem.retain and problem.exposed without the groups of problem.held_out",
        )
    if watch.watched_in_training:
        raise fail(
            "held-out examples are seen in evaluation mode",
            f"{watch.watched_in_training} of them were run in training mode, where batch norm learns from them",
            "call model.eval() before measuring and model.train() after",
        )
    _check_curve(first, model, problem, fail)
    second = _attack(attack, setting, model, fail, start=2)
    different = _difference(first.model, second.model)
    if different or not np.array_equal(first.curve.values, second.curve.values):
        raise fail(
            "deterministic",
            f"two attacks with one seed differ in {different or 'their curves'}",
            "draw from a torch.Generator seeded with expunge.base.seeds.derive(seed, 'what for')",
        )


def _check_curve(done: Attacked, model: nn.Module, problem: Problem, fail: _Fail) -> None:
    curve, count = done.curve, len(problem.held_out)
    remedy = "see expunge.core.case.Curve"
    if curve.values.ndim != 2 or curve.values.shape != (len(curve.steps), count) or len(curve.steps) < 2:
        shapes = f"steps {curve.steps.shape} and values {curve.values.shape} for {count} held-out examples"
        raise fail("shape of the curve", shapes, "record at least one point after the first, on every example")
    if curve.steps[0] != 0 or (np.diff(curve.steps) <= 0).any():
        raise fail("steps of the curve", f"found {curve.steps.tolist()}", "begin with 0 and increase")
    if sorted(curve.ids.tolist()) != sorted(problem.held_out.tolist()):
        raise fail("ids of the curve", "they are not those of problem.held_out", remedy)
    if not ((curve.values >= 0) & (curve.values <= 1)).all():
        raise fail("values of the curve", "some lie outside [0, 1]", remedy)
    if any(module.training for module in done.model.modules()):
        raise fail("evaluation mode", "the attacked model is in training mode", "return model.eval()")
    if shared_storage(done.model, model):
        raise fail("a model of its own", "the attacked model is the input's memory", "attack copy.deepcopy(model)")
    ids = torch.from_numpy(curve.ids)
    for point, name, end in ((0, "first point", model), (curve.peak, "peak", done.model)):
        if not np.array_equal(_known(end, problem, ids), curve.values[point]):
            raise fail(
                f"the {name} can be reproduced",
                f"auditing the {'model as it came' if point == 0 else 'returned model'} gives other values",
                "measure in evaluation mode, and return the weights of the earliest point with the highest mean",
            )


def _attack(attack: Attack, setting: _Setting, model: nn.Module, fail: _Fail, start: int) -> Attacked:
    with _randomness(start, fail), _reasons(fail, "run it on a classifier and on a language model"):
        done = attack(model, Case(0, setting.problem, model, setting.recipe()), 5)
    if not isinstance(done, Attacked):
        raise fail("returns Attacked", f"returned {type(done).__name__}", "see expunge.core.case.Attacked")
    return done


def _forbidden(problem: Problem) -> Tensor:
    """Ids of held-out forget examples and of everything in their groups."""
    every = torch.arange(len(problem.data))
    return every[torch.isin(problem.data.group_of(every), problem.data.group_of(problem.held_out))]


# --- Audits ----------------------------------------------------------------------------------------------------------


def check_audit(audit: Audit) -> None:
    """Hold an audit against its contract, on the kinds of data that it can measure.

    Model, original, problem and global random state stay untouched, the modes of submodules included; it is
    deterministic; each score is finite, has a role, belongs to the examples of its split - of the forget set the
    held-out part - and to the same ones for every model.

    Raises:
        ContractError: The first contract that is broken.
    """
    _check_settings(audit)
    for setting in (s for s in _settings() if s.name in (_REGULARISED, _DOUBLE, _TOKENS)):
        if setting.problem.data.kind in getattr(audit, "kinds", {"classes", "tokens"}):
            _check_audit_on(audit, setting)


def _check_audit_on(audit: Audit, setting: _Setting) -> None:
    def fail(contract: str, finding: str, remedy: str) -> ContractError:
        return ContractError(audit, contract, f"on {setting.name}, {finding}", remedy)

    original, model, problem = setting.model(), setting.model(seed=1), setting.problem
    # One submodule in training mode, as after a partial freeze: setting one mode for all would lose it.
    next(model.children()).train()
    states, contents = [_Snapshot(m) for m in (model, original)], _contents(problem)
    pairs = audit.shadow_pairs
    shadows = Shadows(*([setting.model(seed=i) for i in range(start, start + pairs)] for start in (2, 2 + pairs)))
    case = Case(0, problem, original, setting.recipe(), shadows=shadows if pairs else None)
    with _randomness(1, fail), _reasons(fail, "measure every kind of data in `kinds`"):
        first = audit(model, case, 5)
    for state, checked in zip(states, (model, original), strict=True):
        _require_same(state, checked, fail)
    _require_same_problem(contents, problem, fail)
    if not isinstance(first, list) or not first or not all(isinstance(scores, Scores) for scores in first):
        raise fail("returns scores", f"returned {first!r}", "return a list of expunge.evidence.scores.Scores")
    if len({scores.key for scores in first}) < len(first):
        raise fail("one entry per metric and split", "one is there twice", "give each its own metric or split")
    for scores in first:
        _check_scores(scores, problem, fail)
    with _randomness(2, fail):
        second, other = audit(model, case, 5), audit(original, case, 5)
    if dumps(first) != dumps(second):
        raise fail("deterministic", "two audits with one seed differ", "draw from a torch.Generator seeded with `seed`")
    if [(s.key, s.ids.tolist()) for s in first] != [(s.key, s.ids.tolist()) for s in other]:
        raise fail("the same examples for every model", "ids depend on the model", "choose examples by the seed alone")


def _check_scores(scores: Scores, problem: Problem, fail: _Fail) -> None:
    where = f"{scores.metric} ({scores.split})"
    if not np.isfinite(scores.values).all():
        raise fail("finite", f"{where} has a value that is not finite", "say what it is instead, or leave it out")
    if scores.reduce != "mean":
        return
    splits = {
        "forget": ("problem.held_out", problem.held_out),
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


# --- Tasks, models and data ------------------------------------------------------------------------------------------


def check_task(task: Task, data: Data | None = None) -> None:
    """Hold a task against its contract.

    Data and global random state stay untouched; it is deterministic, measuring included; forget and retain set have no
    example in common and together are what the original trains on; hold-out and test set are trained on by nobody;
    and no copy of a held-out forget example is exposed.

    Args:
        task: The task.
        data: Data that can carry it; by default handwritten digits and Python's reference texts are tried.

    Raises:
        ContractError: The first contract that is broken.
    """
    _check_settings(task)
    refusals = []
    for candidate in [_digits(), _texts()] if data is None else [data]:
        try:
            _check_task_on(task, candidate)
        except SpecError as error:
            refusals.append(error)
        else:
            return
    raise ContractError(task, "some data carry it", str(refusals[0]), "pass data= that can carry it") from refusals[0]


def _check_task_on(task: Task, data: Data) -> None:
    def fail(contract: str, finding: str, remedy: str) -> ContractError:
        return ContractError(task, contract, f"on {data.kind}, {finding}", remedy)

    architecture = MLP(widths=[8]) if data.kind == "classes" else GPT(width=8, layers=1, heads=2)
    recipe, contents = TrainedRecipe(architecture, Training(epochs=1), data), _contents(data)
    problems = []
    for start in (1, 2):
        with _randomness(start, fail):
            problems.append(task(data, 5, task.measure(data, recipe, 5)))
    _require_same_problem(contents, data, fail)
    if _contents(problems[0]) != _contents(problems[1]):
        raise fail("deterministic", "two problems with one seed differ", "draw from a torch.Generator with that seed")
    _check_problem(problems[0], fail)


def _check_problem(problem: Problem, fail: _Fail) -> None:
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
    held, exposed = problem.held_out, problem.exposed
    if set(held.tolist()) | set(exposed.tolist()) != set(problem.forget.tolist()) or torch.isin(held, exposed).any():
        raise fail("exposed and held-out split the forget set", "they do not", "leave the split to Problem")
    # Nothing but content can tell that copies were given no group.
    seen = {_bytes(problem.data, index) for index in held.tolist()}
    copies = [index for index in exposed.tolist() if _bytes(problem.data, index) in seen]
    if torch.isin(problem.data.group_of(exposed), problem.data.group_of(held)).any() or copies:
        raise fail(
            "copies stay together",
            "an attack may train on a copy, or on one of the group, of an example that audits score",
            "give copies the same id in data.groups",
        )


def _bytes(data: Data, index: int) -> bytes:
    return data.inputs[index].numpy().tobytes() + data.targets[index].numpy().tobytes()


def check_model(architecture: Architecture, data: Data | None = None) -> None:
    """Hold a model family against its contract, on each kind of data that it does not refuse.

    One output per label; the same weights for the same seed and others for another, with nothing drawn but from torch's
    global generator; a gradient for each parameter; every weight survives storing bit by bit, ties included; it also
    runs in double precision; and a language model sees no later token.

    Args:
        architecture: The model family.
        data: Data to build for; by default small images of digits and Python's reference texts.

    Raises:
        ContractError: The first contract that is broken.
    """
    _check_settings(architecture)
    refusals = []
    candidates = [_digits(), _texts()] if data is None else [data]
    for candidate in candidates:
        try:
            _check_model_on(architecture, candidate)
        except SpecError as error:
            refusals.append(error)
    if len(refusals) == len(candidates):
        raise ContractError(
            architecture, "some data fit", str(refusals[0]), "pass data= that it is made for"
        ) from refusals[0]


def _check_model_on(architecture: Architecture, data: Data) -> None:
    def fail(contract: str, finding: str, remedy: str) -> ContractError:
        return ContractError(architecture, contract, f"on {data.kind}, {finding}", remedy)

    def build(seed: int) -> nn.Module:
        with _randomness(seed, fail, torch_too=False):
            return architecture(data)

    model, batch, objective = build(1), data.batch(data.train[:4]), infer_objective(data)
    if _difference(model, build(1)) or not _difference(model, build(2)):
        raise fail("the seed decides the weights", "it does not", "initialise from torch's global generator")
    with _reasons(fail, f"take inputs of shape {list(data.inputs.shape[1:])}, or raise a SpecError when built"):
        try:
            logits = objective.decisions(model, batch).logits
        except SpecError as error:
            raise fail("one output per label", str(error), "read the number of labels from the data") from error
    torch.autograd.backward(logits.sum())
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    if idle:
        raise fail("every parameter is used", f"{idle[0]!r} gets no gradient", "remove it, or freeze it")
    stored = checkpoint.restore(build(2), checkpoint.dump(model), "model")
    if _difference(model, stored) or _ties(model) != _ties(stored):
        raise fail("weights can be stored", f"{_difference(model, stored) or 'ties'} changed", "register every tensor")
    double = copy.deepcopy(model).double().eval()
    with torch.no_grad(), _reasons(fail, "make no tensor of a fixed dtype in forward"):
        before = objective.decisions(double, batch).logits
        if data.kind == "tokens":
            later = batch._replace(inputs=batch.inputs.clone())
            later.inputs[:, -1] = (later.inputs[:, -1] + 1) % len(data.labels)
            moved = (objective.decisions(double, later).logits - before).abs().amax(1)
            last = (batch.targets != IGNORE).nonzero()[:, 1] == batch.inputs.shape[1] - 1
            # In double precision an unseen token moves nothing by more than the rounding of another summation order.
            if (moved[~last] > 1e-9).any():
                raise fail("no later token is seen", "changing the last token moves earlier logits", "mask attention")


def check_data(source: Source) -> None:
    """Hold a data set against its contract.

    Loading it twice gives the same values and leaves the global random state alone; training and test examples are
    there and apart; inputs are single-precision numbers or int64 tokens, targets int64; labels that are trained on
    cover those that are tested; C-scores, where there are any, are shares; the settings can be stored and read again.

    Raises:
        ContractError: The first contract that is broken.
    """
    _check_settings(source)

    def fail(contract: str, finding: str, remedy: str) -> ContractError:
        return ContractError(source, contract, finding, remedy)

    with _randomness(1, fail):
        data = source()
    with _randomness(2, fail):
        again = source()
    if not isinstance(data, Data):
        raise fail("returns Data", f"returned {type(data).__name__}", "return an expunge.core.data.Data")
    if _contents(data) != _contents(again):
        raise fail("deterministic", "loading twice gives other values", "fix the order and draw nothing")
    if not len(data.train) or not len(data.test) or torch.isin(data.train, data.test).any():
        raise fail("training and test examples", "some are both, or there are none", "split once, by id")
    allowed = (torch.float32,) if data.inputs.is_floating_point() else (torch.int64,)
    if data.inputs.dtype not in allowed or data.targets.dtype != torch.int64:
        raise fail(
            "types",
            f"inputs are {data.inputs.dtype}, targets {data.targets.dtype}",
            "use float32 for numbers and int64 for tokens and targets",
        )
    if data.kind == "classes" and not torch.isin(data.targets[data.test], data.targets[data.train]).all():
        raise fail("every class is trained on", "a test label is not among those trained on", "shuffle, then split")
    if data.cscore is not None:
        scores = data.cscore[data.train]
        if not ((scores >= 0) & (scores <= 1)).all():
            raise fail("C-scores are shares", "some are not in [0, 1]", "give one to each training example, or none")


# --- What the checks run on ------------------------------------------------------------------------------------------

_PLAIN = "a plain classifier"
_REGULARISED = "a classifier with dropout and batch norm"
_FROZEN = "a classifier with frozen parameters"
_TIED = "a classifier with tied weights"
_DOUBLE = "a classifier in double precision"
_TOKENS = "a small language model"


@dataclass(frozen=True)
class _Setting:
    """A problem with its model, trained for a few steps so that it knows something."""

    name: str
    problem: Problem
    make: Callable[[], nn.Module]
    built: list[nn.Module] = field(default_factory=list)
    """Modules that recipes of this setting have built."""

    def recipe(self) -> Recipe:
        """How such models are trained; keeps what it builds."""

        def architecture(data: Data) -> nn.Module:
            self.built.append(self.make())
            return self.built[-1]

        return TrainedRecipe(architecture, Training(epochs=3, batch_size=16, learning_rate=1e-2), self.problem.data)

    def model(self, seed: int = 0) -> nn.Module:
        """A trained model, in evaluation mode."""
        model = train_model(self.recipe(), self.problem.data, self.problem.train, seed)
        self.built.clear()
        for parameter in model.parameters():
            parameter.grad = None
        return model


class _Classifier(nn.Module):
    """Two hidden layers, optionally with batch norm and dropout, with frozen parts, or with tied weights."""

    def __init__(self, *, regularised: bool = False, frozen: bool = False, tied: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.norm: nn.Module = nn.BatchNorm1d(8) if regularised else nn.Identity()
        self.drop: nn.Module = nn.Dropout(0.2) if regularised else nn.Identity()
        self.third = nn.Linear(8, 8)
        if tied:
            self.third.weight = self.second.weight
        if frozen:
            self.first.requires_grad_(False)
            self.head.bias.requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.first(inputs)))
        hidden = self.drop(torch.relu(self.second(hidden)))
        logits: Tensor = self.head(torch.relu(self.third(hidden)))
        return logits


def _settings() -> list[_Setting]:
    classes, tokens = _classes(), _tokens()
    return [
        _Setting(_PLAIN, classes, _Classifier),
        _Setting(_REGULARISED, classes, lambda: _Classifier(regularised=True)),
        _Setting(_FROZEN, classes, lambda: _Classifier(frozen=True)),
        _Setting(_TIED, classes, lambda: _Classifier(tied=True)),
        _Setting(_DOUBLE, classes, lambda: _Classifier().double()),
        _Setting(_TOKENS, tokens, lambda: GPT(width=8, layers=1, heads=2)(tokens.data)),
    ]


def _classes() -> Problem:
    """72 points of three classes; the forget set are 6 groups of two, some of them with a relative that is retained."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(72, 6, generator=generator), torch.arange(72) % 3
    inputs[torch.arange(72), targets] += 1
    groups = torch.arange(72)
    groups[:12] = groups[:12] // 2 * 2
    groups[12:15] = torch.tensor([0, 4, 8])
    data = Data(inputs, targets, torch.arange(48), torch.arange(48, 64), ("a", "b", "c"), groups=groups)
    return Problem(data, torch.arange(12), torch.arange(12, 48), data.test, holdout=torch.arange(64, 72))


def _tokens() -> Problem:
    """40 sequences of eight letters, of which the first two are a prompt; the forget set are 4 groups of two."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(0, 11, (40, 9), generator=generator)
    targets = text[:, 1:].clone()
    targets[:, 0] = IGNORE
    groups = torch.arange(40)
    groups[:8] = groups[:8] // 2 * 2
    data = Data(
        text[:, :-1], targets, torch.arange(28), torch.arange(28, 36), tuple("abcdefghijk"), "tokens", groups=groups
    )
    return Problem(data, torch.arange(8), torch.arange(8, 28), data.test, holdout=torch.arange(36, 40))


def _digits() -> Data:
    from expunge.data.digits import Digits

    return Digits()()


def _texts() -> Data:
    from expunge.data.python_docs import PythonDocs

    return PythonDocs(train=200, test=20)()


# --- What the checks look at -----------------------------------------------------------------------------------------

_Fail = Callable[[str, str, str], ContractError]
"""(contract, finding, remedy) -> the error, with the part and the setting filled in."""


class _Watch:
    """Watches models run: which shared memory, how many gradients reached an output, and from which examples.

    Args:
        model: The model that is worked on; other models are compared if they are of its class and shapes.
        inputs: Examples `[n, ...]` to look out for.
    """

    def __init__(self, model: nn.Module, inputs: Tensor | None = None) -> None:
        self._kind, self._inputs = _shape(model), inputs
        self._roots: list[nn.Module] = []
        self._depth = 0
        self.shared: list[str] = []
        self.gradients = self.trained_on_watched = self.watched_in_training = 0

    def __enter__(self) -> _Watch:
        module = nn.modules.module
        self._handles = [
            module.register_module_forward_pre_hook(self._before),
            module.register_module_forward_hook(self._after, with_kwargs=True, always_call=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, module: nn.Module, _: Any) -> None:
        if self._depth == 0 and _shape(module) == self._kind:
            if all(module is not root for root in self._roots):
                self._roots.append(module)
            # At every run, not only at first sight: memory can be shared later too.
            for root in self._roots:
                if root is not module and not self.shared:
                    self.shared = shared_storage(root, module)
        self._depth += 1

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        self._depth -= 1
        inputs = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        if self._depth or inputs is None or output is None:
            return
        seen = self._is_watched(inputs)
        if module.training:
            self.watched_in_training += int(seen.sum())
        logits: Any = getattr(output, "logits", output)
        if isinstance(logits, Tensor) and logits.requires_grad and logits.ndim:
            with contextlib.suppress(RuntimeError):  # inside torch.func, where a tensor takes no hook
                hooked: Any = logits
                hooked.register_hook(lambda g: self._count(g, seen))

    def _is_watched(self, inputs: Tensor) -> Tensor:
        if self._inputs is None or inputs.shape[1:] != self._inputs.shape[1:]:
            return torch.zeros(len(inputs) if inputs.ndim else 1, dtype=torch.bool)
        watched = self._inputs.to(inputs)
        return (inputs.detach()[:, None] == watched[None]).flatten(2).all(2).any(1)

    def _count(self, gradient: Tensor, seen: Tensor) -> None:
        # An example whose gradient is zero was computed with, but taught nothing.
        taught = (gradient.detach().flatten(1) != 0).any(1)
        self.gradients += int(taught.sum())
        if len(taught) == len(seen):
            self.trained_on_watched += int((taught & seen).sum())


class _Snapshot:
    """A module as it was: what `_require_same` compares with."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.digest, self.state = model, state_digest(model), _cloned(model)


def _require_same(before: _Snapshot, model: nn.Module, fail: _Fail) -> None:
    now = _named(model)
    changed = [name for name, tensor in before.state.items() if name not in now or not _equal(tensor, now[name])]
    graded = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    if before.digest != state_digest(model) or changed or graded:
        what = f"{changed[0]!r} changed" if changed else "its modes or frozen flags changed"
        what = f"{graded[0]!r} has a gradient" if graded and not changed else what
        raise fail("the input model is unchanged", what, "work on copy.deepcopy(model), and restore each module's mode")


def _require_same_problem(before: dict[str, str], holder: Problem | Data, fail: _Fail) -> None:
    now = _contents(holder)
    changed = [name for name in before if before[name] != now.get(name)]
    if changed:
        raise fail("the data are unchanged", f"{changed[0]} changed", "clone a tensor before you write to it")


def _contents(holder: Any, path: str = "") -> dict[str, str]:
    """Place of each tensor in (nested) dataclasses to a digest of its shape, dtype and bytes."""
    found: dict[str, str] = {}
    for entry in fields(holder):
        value, place = getattr(holder, entry.name), f"{path}{entry.name}"
        if isinstance(value, Tensor):
            head = f"{value.dtype}{tuple(value.shape)}".encode()
            found[place] = hashlib.sha256(head + value.contiguous().numpy().tobytes()).hexdigest()
        elif is_dataclass(value):
            found |= _contents(value, f"{place}.")
    return found


def _named(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _cloned(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in _named(module).items()}


def _equal(a: Tensor, b: Tensor) -> bool:
    # By bytes, so that a NaN equals itself.
    same = a.shape == b.shape and a.dtype == b.dtype
    return same and a.detach().numpy().tobytes() == b.detach().numpy().tobytes()


def _difference(a: nn.Module, b: nn.Module) -> str:
    """The first tensor in which two modules differ by a bit, quoted, or the empty string."""
    ours, theirs = _named(a), _named(b)
    for name in [*ours, *theirs]:
        if name not in ours or name not in theirs or not _equal(ours[name], theirs[name]):
            return repr(name)
    return ""


def _ties(module: nn.Module) -> list[list[str]]:
    """Names of parameters that are one, group by group."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return sorted(group for group in names.values() if len(group) > 1)


def _shape(module: nn.Module) -> tuple[object, ...]:
    return type(module), tuple((name, tuple(p.shape)) for name, p in module.named_parameters())


def _logits(model: nn.Module, problem: Problem) -> np.ndarray:
    with torch.no_grad():
        found = [problem.objective.decisions(model, batch).logits for batch in in_order(problem.data, problem.test)]
    return torch.cat(found).numpy()


def _known(model: nn.Module, problem: Problem, ids: Tensor) -> np.ndarray:
    copied = copy.deepcopy(model).eval()
    with torch.no_grad():
        found = [knows(problem.objective.decisions(copied, b), b.size) for b in in_order(problem.data, ids)]
    return torch.cat(found).double().numpy()


@contextlib.contextmanager
def _randomness(start: int, fail: _Fail, *, torch_too: bool = True) -> Iterator[None]:
    """Put the global random states somewhere, require that they are still there afterwards, and put them back."""
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.set_rng_state(torch.Generator().manual_seed(start).get_state())
    np.random.seed(start)
    random.seed(start)
    placed = _random_states()
    try:
        yield
        for name, state in _random_states().items():
            if state != placed[name] and (torch_too or name != "torch"):
                raise fail(
                    "global randomness is untouched",
                    f"the global state of {name} moved",
                    "draw from a torch.Generator of your own, or inside torch.random.fork_rng",
                )
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def _random_states() -> dict[str, object]:
    _, key, *place = np.random.get_state()
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": (np.asarray(key).tobytes(), *place),
        "random": random.getstate(),
    }


@contextlib.contextmanager
def _reasons(fail: _Fail, remedy: str) -> Iterator[None]:
    """Turn what a part raises into a broken contract that says so."""
    try:
        yield
    except ContractError:
        raise
    except Exception as error:
        raise fail("runs", f"it raises {type(error).__name__}: {error}", remedy) from error


def _check_settings(part: object) -> None:
    """A part is its configuration: its settings, stored as JSON, make the same part."""
    if not isinstance(part, Part):
        return
    try:
        stored = msgspec.json.decode(msgspec.json.encode(part.settings()))
        again = type(part).from_table(stored, where="settings")
        msgspec.json.encode(part.fingerprint())
    except Exception as error:
        finding = f"they raise {type(error).__name__}: {error}"
        raise ContractError(part, "settings can be stored", finding, "let fields hold plain data") from error
    if again != part:
        raise ContractError(part, "settings can be stored", f"{part} is read as {again}", "let fields hold plain data")


Kind = Literal["method", "attack", "audit", "task", "model", "data"]
CHECKS: Mapping[Kind, Callable[[Any], None]] = {
    "method": check_method,
    "attack": check_attack,
    "audit": check_audit,
    "task": check_task,
    "model": check_model,
    "data": check_data,
}
"""Kind of part, as in `expunge.base.registry`, to its check."""
