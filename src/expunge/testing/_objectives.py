"""The contract of an objective: a loss to descend on, metrics per example, and what it says that it provides."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from expunge.base.errors import MissingError, SpecError
from expunge.core.data import Batch, Data
from expunge.core.decisions import Decisions
from expunge.core.objective import CLASSES, DECISIONS, IGNORE, RELABEL, TOKENS, Objective
from expunge.core.seeding import forked
from expunge.testing._baselines import baselines_and_labels
from expunge.testing._error import ContractError, Fail, failing
from expunge.testing._rules import check_settings, randomness, reasons, require_same, require_same_problem
from expunge.testing._state import Snapshot, contents, equal

PROVIDABLE = frozenset({DECISIONS, CLASSES, TOKENS, RELABEL})
CLOSE = 1e-5
"""Relative and absolute error, in single precision."""


def check_objective(objective: Objective, data: Data | None = None, model: nn.Module | None = None) -> None:
    """Hold an objective against its contract, on each kind of data that it does not refuse.

    Losses and metrics are one finite number per example, which the rest of the batch does not change; the loss is their
    mean over examples or over decisions, and has a gradient; `metrics` name what `measure` returns, one of them is
    knowledge and one utility; baselines are one finite number per example, for some of the metrics; utility by
    label belongs to examples of the batch; `provides` says what works, and anything else raises a `MissingError`; wrong
    targets are wrong; everything is deterministic, and changes neither model, data nor global random state.

    Args:
        objective: The objective.
        data: Data that it is made for; by default small sets of classes, labels, tokens, masks and numbers are tried.
        model: A model of these data.

    Raises:
        ContractError: The first contract that is broken.
    """
    check_settings(objective)
    _check_declared(objective)
    refusals, tried = [], _candidates(objective, data, model)
    for name, build in tried:
        try:
            _check_on(*build(), failing(objective, name))
        except SpecError as error:
            refusals.append(error)
    if len(refusals) == len(tried):
        remedy = "pass data= and model= that it is made for"
        raise ContractError(objective, "some data fit", str(refusals[0]), remedy) from refusals[0]


def _check_declared(objective: Objective) -> None:
    fail, names = failing(objective), [metric.name for metric in objective.metrics]
    if not any(m.knowledge for m in objective.metrics) or not any(m.utility for m in objective.metrics):
        raise fail("knowledge and utility", "no metric is one of them", "set knowledge and utility in `metrics`")
    if len(set(names)) < len(names):
        raise fail("every metric is measured", "two metrics have one name", "name each differently")
    if not objective.provides <= PROVIDABLE:
        unknown = sorted(objective.provides - PROVIDABLE)
        raise fail("provides what it says", f"nothing is called {unknown}", f"name some of {sorted(PROVIDABLE)}")


def _check_on(data: Data, model: nn.Module, fail: Fail) -> None:
    """Raises the `SpecError` with which the data's objective refuses the data or the model."""
    objective: Objective = data.objective
    batch, before, held = data.batch(data.train), Snapshot(model), contents(data)
    results = []
    for start in (1, 2):
        with randomness(start, fail), reasons(fail, "refuse with a SpecError what it cannot judge", SpecError):
            results.append(_results(objective, model, batch, fail))
    require_same(before, model, fail)
    require_same_problem(held, data, fail)
    if any(not equal(results[0][name], results[1][name]) for name in results[0]):
        raise fail("deterministic", "two calls differ", "draw from the generator that relabel is given alone")
    _check_alone(objective, model, batch, fail)


def _results(objective: Objective, model: nn.Module, batch: Batch, fail: Fail) -> dict[str, Tensor]:
    """Everything that it makes of a model and a batch, each checked by itself."""
    losses, loss = objective.losses(model, batch), objective.loss(model, batch)
    _check_values("losses", losses, batch, fail)
    decisions = _decisions(objective, model, batch, fail)
    _check_loss(loss, losses, decisions, model, fail)
    with torch.no_grad():
        measured = objective.measure(model, batch)
    if not isinstance(measured, dict) or set(measured) != {metric.name for metric in objective.metrics}:
        raise fail("every metric is measured", "`metrics` and `measure` name others", "name the same in both")
    for name, values in measured.items():
        _check_values(name, values, batch, fail)
    judged = baselines_and_labels(objective, model, batch, fail)
    wrong = _relabelled(objective, model, batch, decisions, fail)
    return {"losses": losses, "loss": loss, **measured, **judged, **wrong} | (decisions._asdict() if decisions else {})


def _check_values(name: str, values: Any, batch: Batch, fail: Fail) -> None:
    if not isinstance(values, Tensor) or values.shape != (batch.size,):
        found = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise fail("one value per example", f"{name} is {found}", f"return a tensor [{batch.size}]")
    if not values.isfinite().all():
        raise fail("finite", f"{name} has a value that is not finite", "refuse with a SpecError what has no value")


def _check_loss(loss: Tensor, losses: Tensor, decisions: Decisions | None, model: nn.Module, fail: Fail) -> None:
    weights = torch.ones_like(losses)
    if decisions is not None:
        weights = torch.bincount(decisions.example, minlength=len(losses)).to(losses)
    means = losses.mean(), (losses * weights).sum() / weights.sum()
    if loss.ndim or not any(torch.isclose(loss.to(mean), mean, rtol=CLOSE, atol=CLOSE) for mean in means):
        raise fail("the loss is a mean", "it is no mean of `losses`", "take it over examples or over decisions")
    for value in (loss, losses.sum()):
        parameters = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(value, parameters, allow_unused=True) if value.requires_grad else ()
        reached = [g for g in gradients if g is not None and g.any()]
        if not reached or not all(g.isfinite().all() for g in reached):
            raise fail(
                "gradients flow", "a loss has no finite gradient", "compute it from the model's output, undetached"
            )


def _decisions(objective: Objective, model: nn.Module, batch: Batch, fail: Fail) -> Decisions | None:
    try:
        decisions = objective.decisions(model, batch)
    except MissingError:
        _require(DECISIONS not in objective.provides, DECISIONS, "they raise a MissingError", fail)
        return None
    _require(DECISIONS in objective.provides, DECISIONS, "it makes them and does not say so", fail)
    count, example = len(decisions.targets), decisions.example
    shaped = decisions.logits.ndim == 2 and len(decisions.logits) == len(example) == count
    if not shaped or decisions.targets.ndim != 1 or not set(example.tolist()) <= set(range(batch.size)):
        raise fail(
            "decisions are rows", "shapes or rows disagree", "return logits [n, c], targets [n] and examples [n]"
        )
    if CLASSES in objective.provides and example.tolist() != list(range(batch.size)):
        _require(False, CLASSES, "an example has not one decision", fail)
    if TOKENS in objective.provides:
        _require(batch.targets.ndim == 2, TOKENS, "targets are not [b, t]", fail)
    return decisions


def _relabelled(
    objective: Objective, model: nn.Module, batch: Batch, decisions: Decisions | None, fail: Fail
) -> dict[str, Tensor]:
    try:
        wrong = objective.relabel(batch, torch.Generator().manual_seed(5))
    except MissingError:
        _require(RELABEL not in objective.provides, RELABEL, "it raises a MissingError", fail)
        return {}
    _require(RELABEL in objective.provides, RELABEL, "it works and the objective does not say so", fail)
    same_form = wrong.targets.shape == batch.targets.shape and wrong.targets.dtype == batch.targets.dtype
    right = (
        wrong.targets == batch.targets
        if decisions is None or not same_form
        else (objective.decisions(model, wrong).targets == decisions.targets)
    )
    if not same_form or right.any():
        raise fail("wrong targets are wrong", "some are right, or of another form", "draw among the other targets")
    return {"relabelled": wrong.targets}


def _require(true: bool, name: str, finding: str, fail: Fail) -> None:
    if not true:
        raise fail("provides what it says", f"of {name!r}, {finding}", "name in `provides` what works, and only that")


def _check_alone(objective: Objective, model: nn.Module, batch: Batch, fail: Fail) -> None:
    """An example's values are the same without the rest of the batch."""
    alone = Batch(*(part[:1] for part in batch))
    with torch.no_grad():
        pairs = {"losses": (objective.losses(model, batch), objective.losses(model, alone))}
        some, other = objective.measure(model, batch), objective.measure(model, alone)
    for name, (all_values, value) in (pairs | {name: (some[name], other[name]) for name in some}).items():
        if not torch.allclose(all_values[:1], value.to(all_values), rtol=CLOSE, atol=CLOSE):
            raise fail("examples are judged alone", f"{name} depends on the batch", "average over no other example")


def _candidates(
    objective: Objective, data: Data | None, model: nn.Module | None
) -> list[tuple[str, Callable[[], tuple[Data, nn.Module]]]]:
    """What the data are, and how they are made under this objective, with a model of them."""
    if data is not None and model is not None:
        judged = data.judged_by(objective)
        return [("the data given", lambda: (judged, model))]
    generator = torch.Generator().manual_seed(0)
    vectors, images = torch.randn(8, 6, generator=generator), torch.rand(8, 1, 4, 4, generator=generator)
    classes, yes_or_no, masks = torch.arange(8) % 3, torch.arange(24).view(8, 3) % 2, (images[:, 0] > 0.5).long()
    tokens = torch.arange(48).view(8, 6) * 3 % 11
    partly = tokens.roll(-1, 1).index_fill(1, torch.tensor([0]), IGNORE)
    kinds: dict[str, tuple[Tensor, Tensor, Callable[[int], nn.Module]]] = {
        "classes": (vectors, classes, partial(nn.Linear, 6)),
        "several labels": (vectors, yes_or_no, partial(nn.Linear, 6)),
        "numbers": (vectors, vectors[:, :2].clone(), partial(nn.Linear, 6)),
        "masks": (images, masks, lambda outputs: nn.Conv2d(1, outputs, 1)),
        "tokens": (tokens, partly, lambda outputs: nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, outputs))),
    }
    return [(name, partial(_judged, objective, *kind)) for name, kind in kinds.items()]


def _judged(
    objective: Objective, inputs: Tensor, targets: Tensor, model: Callable[[int], nn.Module]
) -> tuple[Data, nn.Module]:
    made = Data(inputs, targets, torch.arange(6), torch.arange(6, 8), objective=objective)
    with forked(0):
        return made, model(made.objective.outputs)
