"""Defaults: diagnostics look at the plan of the spec's own method, and the default set costs two epochs in all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from expunge.base import registry
from expunge.base.part import Part
from expunge.core.contracts import Method
from expunge.core.data import Data

EPOCHS = 2.0
"""Most that the default set costs, in passes over the training set, all diagnostics together."""
SHARES = {"sharpness": 2}
"""Parts of that, one where nothing is said: an eigenvalue takes many products with all of a sample."""
LEAST = 1000
"""Gradients that each of them may take on a small training set, of which its share would show nothing."""


@dataclass(frozen=True)
class DefaultSet:
    """The diagnostics that run where none is named."""

    settings: Mapping[str, dict[str, Any]]
    """Diagnostic -> its settings that are not the defaults."""
    left_out: Mapping[str, str]
    """Diagnostic -> why it is not among them."""


def default_set(data: Data) -> DefaultSet:
    """Every registered diagnostic with its share of `EPOCHS`, or `LEAST`; not one that would train networks first."""
    left_out = {}
    if data.cscore is None:
        left_out["memorization"] = "the data ship no C-scores, and it would train networks for them; name it to do so"
    names = [name for name in registry.names("diagnostic") if name not in left_out]
    expensive = [name for name in names if "epochs" in _settings_of(name)]
    part, least = EPOCHS / sum(SHARES.get(name, 1) for name in expensive), LEAST / len(data.train)
    budgets = {name: {"epochs": max(SHARES.get(name, 1) * part, least)} for name in expensive}
    return DefaultSet({name: budgets.get(name, {}) for name in names}, left_out)


def planned(methods: Iterable[Method]) -> dict[str, Any]:
    """Step size, mix and batch sizes of the first method that is descent with ascent by SGD; nothing where none is."""
    for method in methods:
        # A function beside the spec file says nothing of itself.
        ascent = getattr(method, "ascent", None)
        if ascent is not None:
            has = method.settings()
            return {
                "learning_rate": has["learning_rate"],
                "ascent_weight": ascent,
                "batch_size": has["batch_size"],
                # Without a retain set's descent, the batches that there are are the forget set's.
                "forget_batch_size": has.get("forget_batch_size", has["batch_size"]),
            }
    return {}


def with_plan(name: str, settings: Mapping[str, Any], plan: Mapping[str, Any]) -> dict[str, Any]:
    """The diagnostic's settings, and of the plan what it has a setting for and was not given."""
    return {key: value for key, value in plan.items() if key in _settings_of(name)} | dict(settings)


def _settings_of(name: str) -> set[str]:
    # A name that is not there, or is no Part, is reported where parts are built.
    if ":" not in name and name not in registry.names("diagnostic"):
        return set()
    found = registry.load("diagnostic", name)
    return {f.name for f in fields(found)} if isinstance(found, type) and issubclass(found, Part) else set()
