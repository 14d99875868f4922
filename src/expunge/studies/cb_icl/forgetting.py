"""Is a forgotten class, or a forgotten person, recoverable from context? Methods beside retrained models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from expunge.audits.in_context import InContext
from expunge.base import registry
from expunge.base.seeds import derive
from expunge.core.case import Case, Recipe, train_model
from expunge.core.contracts import Audit
from expunge.core.problem import Problem
from expunge.data.digits import Digits
from expunge.data.people import People
from expunge.models.gpt import GPT
from expunge.models.mlp import MLP
from expunge.tasks.people import People as PeopleTask
from expunge.tasks.whole_class import WholeClass
from expunge.train.evaluation import known_share
from expunge.train.training import TrainedRecipe, Training

AUDIT = InContext(queries=100)
MARGIN = 0.1
"""Share of the range that counts, as in verdicts."""


class Forgetting(NamedTuple):
    """A problem, how its models are trained, and the methods with their settings."""

    problem: Problem
    recipe: Recipe
    methods: Mapping[str, Mapping[str, Any]]


def digit(seed: int, epochs: int) -> Forgetting:
    """All examples of one digit, another one for each seed."""
    data = Digits()()
    methods = ("finetune", "random_relabel", "npo", "scrub", "delete", "eu_k", "weight_distortion")
    problem = WholeClass(label=seed % 10)(data, seed, {})
    recipe = TrainedRecipe(MLP(), Training(epochs=epochs), data)
    return Forgetting(problem, recipe, {name: {} for name in methods})


def persons(seed: int, epochs: int) -> Forgetting:
    """Ten of twenty made-up people, whom a small GPT knows by heart."""
    data = People(people=20, public=20, test=10)()
    small = {"batch_size": 32, "forget_batch_size": 8}
    methods: dict[str, dict[str, Any]] = {
        "npo": {"epochs": 4, **small},
        "gradient_ascent": {"batch_size": 8},
        "random_relabel": {"epochs": 4, "batch_size": 32},
        "weight_distortion": {"sigma": 0.05, "epochs": 10, "batch_size": 32},
    }
    problem = PeopleTask(count=10)(data, seed, {})
    recipe = TrainedRecipe(GPT(width=64, layers=2), Training(epochs=epochs, batch_size=32, final=0.05), data)
    return Forgetting(problem, recipe, methods)


def original(of: Forgetting, seed: int) -> nn.Module:
    """The model that was trained on everything."""
    return train_model(of.recipe, of.problem.data, of.problem.train, derive(seed, "original"))


Reading = dict[str, float]
"""`accuracy` and `READ` of one model on the forget set, beyond answers without knowledge."""
READ = ("in_context", "in_context_chosen", "in_context_own")
"""Metrics of the audit; the last one only for answers to choose from."""


def readings(of: Forgetting, seed: int, original: nn.Module) -> dict[str, Reading]:
    """The readings of the original, two retrained models (`reference`, `retrain`), and each method's result."""
    problem, recipe = of.problem, of.recipe
    case = Case(seed, problem, original, recipe)
    models = {
        "original": original,
        "reference": train_model(recipe, problem.data, problem.reference_train, derive(seed, "original")),
        "retrain": train_model(recipe, problem.data, problem.reference_train, derive(seed, "retrain")),
    }
    for name, settings in of.methods.items():
        method: Any = registry.build("method", name, dict(settings), where=name)
        models[name] = method(original, problem, recipe, derive(seed, name), None, None, original).model
    return {name: _reading(AUDIT, model, case) for name, model in models.items()}


def _reading(audit: Audit, model: nn.Module, case: Case) -> Reading:
    accuracy = known_share(model, case.problem, case.problem.unexposed)
    reading = {"accuracy": accuracy}
    for scores in audit(model, case, case.seed):
        if scores.split == "forget" and scores.metric in READ:
            baseline = 0.0 if scores.baseline is None else scores.baseline
            reading[scores.metric] = float(np.mean(scores.values - baseline))
    return reading


def residual(readings: Mapping[str, Reading], name: str, metric: str) -> float:
    """What a model has beyond the reference, as a share of the range between original and reference; NaN if none."""
    span = readings["original"][metric] - readings["reference"][metric]
    return (readings[name][metric] - readings["reference"][metric]) / span if span > 0 else math.nan


def called_forgotten(readings: Mapping[str, Reading]) -> list[str]:
    """The methods whose accuracy on the forget set exceeds that of the reference by no more than the margin."""
    names = [name for name in readings if name not in ("original", "reference", "retrain")]
    return [name for name in names if residual(readings, name, "accuracy") <= MARGIN]
