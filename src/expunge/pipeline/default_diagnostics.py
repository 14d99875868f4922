"""Defaults: diagnostics take the plan of the spec's own method, and the default set costs two epochs in total."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from expunge.base import registry
from expunge.base.part import Part
from expunge.core.data import Data
from expunge.core.method import Method

EPOCHS = 2.0
"""Largest cost of the default set, in passes over the training set, all diagnostics together."""
SHARES = {"sharpness": 2}
"""Parts of that budget per diagnostic, by default 1: an eigenvalue takes many products with the whole sample."""
LEAST = 1000
"""Gradients that each diagnostic may always take; on a small training set its share would be too few to show much."""


@dataclass(frozen=True)
class DefaultSet:
    """The diagnostics that run if none is named."""

    settings: Mapping[str, dict[str, Any]]
    """Diagnostic -> its settings that differ from the defaults."""
    left_out: Mapping[str, str]
    """Diagnostic -> why it does not run."""


def default_set(data: Data) -> DefaultSet:
    """Every registered diagnostic that runs by default, with its share of `EPOCHS`, or `LEAST`.

    None that would have to train networks runs.
    """
    left_out = {}
    if data.cscore is None:
        left_out["memorization"] = "the data ship no C-scores, and it would train networks for them; name it to do so"
    names = [name for name in registry.names("diagnostic") if name not in left_out and _by_default(name)]
    expensive = [name for name in names if "epochs" in _settings_of(name)]
    part, least = EPOCHS / sum(SHARES.get(name, 1) for name in expensive), LEAST / len(data.train)
    budgets = {name: {"epochs": max(SHARES.get(name, 1) * part, least)} for name in expensive}
    return DefaultSet({name: budgets.get(name, {}) for name in names}, left_out)


def planned(methods: Iterable[Method]) -> dict[str, Any]:
    """Step size, mix and batch sizes of the first method that is descent with ascent by SGD; empty if there is none."""
    for method in methods:
        # A function beside the spec file declares no plan.
        ascent = getattr(method, "ascent", None)
        if ascent is not None:
            settings = method.settings()
            return {
                "learning_rate": settings["learning_rate"],
                "ascent_weight": ascent,
                "batch_size": settings["batch_size"],
                # A method without descent on the retain set has one batch size: that of the forget set.
                "forget_batch_size": settings.get("forget_batch_size", settings["batch_size"]),
            }
    return {}


def with_plan(name: str, settings: Mapping[str, Any], plan: Mapping[str, Any]) -> dict[str, Any]:
    """The diagnostic's settings, completed by those of the plan that it has and that were not given."""
    return {key: value for key, value in plan.items() if key in _settings_of(name)} | dict(settings)


def _by_default(name: str) -> bool:
    return bool(getattr(registry.load("diagnostic", name), "by_default", True))


def _settings_of(name: str) -> set[str]:
    # An unknown name, or an object that is no Part, is reported where parts are built.
    if ":" not in name and name not in registry.names("diagnostic"):
        return set()
    part = registry.load("diagnostic", name)
    return {f.name for f in fields(part)} if isinstance(part, type) and issubclass(part, Part) else set()
