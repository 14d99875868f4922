"""The contract of a diagnostic: it changes nothing, sees no reference, and returns numbers that can be shown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from expunge.base.errors import ExpungeError
from expunge.core.case import Case
from expunge.core.contracts import Diagnostic
from expunge.evidence.estimate import Estimate
from expunge.testing._error import ContractError, Fail, failing
from expunge.testing._rules import check_settings, randomness, reasons, require_same, require_same_problem
from expunge.testing._settings import Setting, every_setting, scenes_setting
from expunge.testing._state import Snapshot, contents

QUANTITIES = ("original", "reference", "range")
"""What an estimate may predict, see `Diagnostic.predicts`."""
ROUNDING = 1e-9
"""Relative error by which a value may lie outside of its interval."""


@dataclass(frozen=True, eq=False)
class _Unreferenced(Case):
    """A case whose reference nobody may see; remembers who asked."""

    asked: list[str] = field(default_factory=list)

    @property
    def reference(self) -> nn.Module:
        self.asked.append("reference")
        raise AttributeError("a diagnostic runs before there is a reference")


def check_diagnostic(diagnostic: Diagnostic) -> None:
    """Hold a diagnostic against its contract, on classifiers of six sorts, a language model and an autoencoder.

    On each of them it runs, or refuses with an `ExpungeError`. If it refuses all, it must run on a classifier of scenes
    whose objects are known. Model, problem and global
    random state stay untouched; it never asks for a reference; it is deterministic; its estimates are numbers, each
    with a unit, and within their intervals where they have one; `summary` is text; `predicts` names its own estimates.

    An infinite value is a number: it says that something never happens. A NaN is none.

    Raises:
        ContractError: The first contract that is broken.
    """
    check_settings(diagnostic)
    estimates: set[str] = set()
    refusals: list[ExpungeError] = []
    for setting in every_setting():
        try:
            estimates |= _check_on(diagnostic, setting).keys()
        except ExpungeError as error:
            refusals.append(error)
    if not estimates:
        try:
            estimates |= _check_on(diagnostic, scenes_setting()).keys()
        except ExpungeError as error:
            refusals.append(error)
    if not estimates:
        remedy = "refuse only what the diagnostic cannot look at"
        raise ContractError(diagnostic, "works on some model", str(refusals[0]), remedy) from refusals[0]
    for name, quantity in diagnostic.predicts.items():
        if name not in estimates:
            finding = f"it predicts by {name!r}, and estimates {', '.join(sorted(estimates))}"
            raise ContractError(diagnostic, "predicts its own estimates", finding, "name estimates that it returns")
        if quantity not in QUANTITIES:
            finding = f"{name!r} predicts {quantity!r}"
            raise ContractError(diagnostic, "predicts what is measured", finding, f"name one of {QUANTITIES}")


def _check_on(diagnostic: Diagnostic, setting: Setting) -> Mapping[str, Estimate]:
    """Its estimates; raises the `ExpungeError` with which it refuses."""
    fail, model = failing(diagnostic, setting.name), setting.model()
    # One submodule in training mode, as after a partial freeze: setting one mode for all would lose it.
    next(model.children()).train()
    before, held = Snapshot(model), contents(setting.problem)
    try:
        first = _look(diagnostic, setting, model, fail, start=1)
    finally:
        require_same(before, model, fail)
        require_same_problem(held, setting.problem, fail)
    _check_estimates(first, fail)
    with randomness(1, fail), reasons(fail, "summarise every dict that the call returns"):
        summary: object = diagnostic.summary(first)
    if not isinstance(summary, str):
        raise fail("summary is text", f"it is {type(summary).__name__}", "return a sentence, or an empty string")
    # NaN is not equal to itself, its spelling is.
    if repr(first) != repr(_look(diagnostic, setting, model, fail, start=2)):
        raise fail("deterministic", "two calls with one seed differ", "draw from generator_of(seed, 'what for')")
    return first


def _look(diagnostic: Diagnostic, setting: Setting, model: nn.Module, fail: Fail, start: int) -> Mapping[str, Estimate]:
    case = _Unreferenced(0, setting.problem, model, setting.recipe())
    try:
        with randomness(start, fail), reasons(fail, "refuse with an ExpungeError what it cannot look at", ExpungeError):
            return diagnostic(case, 5)
    finally:
        if case.asked:
            raise fail("sees no reference", "it asked for one", "use case.original, case.problem and case.recipe")


def _check_estimates(estimates: object, fail: Fail) -> None:
    named = isinstance(estimates, dict) and all(isinstance(e, Estimate) for e in estimates.values())
    if not isinstance(estimates, dict) or not estimates or not named:
        raise fail("returns estimates", f"returned {estimates!r}", "return a dict of name to Estimate, not empty")
    for name, estimate in estimates.items():
        if not estimate.unit:
            raise fail("estimates have a unit", f"{name!r} has none", "say the unit, such as 'share' or 'steps'")
        if math.isnan(estimate.value) or not _holds(estimate):
            raise fail("estimates are numbers", f"{name!r} is {estimate}", "leave out what cannot be estimated")


def _holds(estimate: Estimate) -> bool:
    """Whether the interval holds the value; one that is not known does."""
    slack = ROUNDING * abs(estimate.value) if math.isfinite(estimate.value) else 0.0
    return not (estimate.low > estimate.value + slack or estimate.high < estimate.value - slack)
