"""How stages make models: by training, by a method or by an attack. Shadow models are made in the same ways."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from expunge.core import checkpoint
from expunge.core.case import Meter, train_model
from expunge.core.footprint import release
from expunge.core.method import Method, original_of
from expunge.core.modules import kept_below, weights_differ
from expunge.core.problem import Problem
from expunge.evidence import scores as score_files
from expunge.evidence.scores import Scores
from expunge.pipeline.parts import Parts
from expunge.pipeline.references import refuse_unlike
from expunge.pipeline.stage import CURVE, MONITORS, SCORES, WEIGHTS, Stage
from expunge.pipeline.stage_kind import Output, setting
from expunge.pipeline.worker import Worker
from expunge.train import adapting


def trained(worker: Worker, stage: Stage, ids: Tensor, *, watched: bool = False) -> Output:
    """Train a model on these examples; if `watched`, with the records of the spec's monitors."""
    plan, data, meter = worker.plan, worker.problem(stage).data, Meter()
    recipe = plan.recipe(data, watched=watched)
    model = train_model(recipe, data, ids, plan.seeds.train(stage), meter)
    # References of a trained original have its own recipe.
    if stage.kind == "reference" and plan.gives_original:
        original = plan.original(data)
        assert original is not None
        refuse_unlike(model, original, worker.problem(stage), stage.name)
    files = {WEIGHTS: checkpoint.dump(release(model))}
    if watched and plan.monitors:
        files[MONITORS] = json.dumps(recipe.records, indent=1, allow_nan=False).encode()
    return Output(files, meter.gradients)


def written_by_training(files: Mapping[str, str | None], plan: Parts) -> Mapping[str, str | None]:
    """The files of a watched training: `files`, and the monitors' records if the spec has monitors."""
    return {**files, MONITORS: "monitors"} if plan.monitors else files


def unlearned(worker: Worker, stage: Stage) -> Output:
    """Apply the stage's method to its input `model`."""
    problem, plan = worker.problem(stage), worker.plan
    start, original = worker.model_and_original(stage)
    method, budget = plan.methods[stage.model], plan.spec.chain(stage.model)[-1].budget
    recipe, seed = worker.recipe(problem), plan.seeds.unlearn(stage)
    adapter, where = plan.adapters.get(("method", stage.model)), f"method {stage.model!r}"
    given: dict[str, Any] = {**worker.statistics(stage), **original_of(method, adapting.seen(original, adapter))}
    done = method(adapting.given(start, adapter, seed, where), problem, recipe, seed, budget, **given)
    model, merging = adapting.taken(done.model, adapter, problem, where)
    # A method never changes its argument. A plain function may have, so that both are loaded again.
    keys = stage.input("model"), stage.input("original")
    before, first = (start, original) if isinstance(method, Method) else worker.models(keys, problem)
    changed, kept = weights_differ(before, model), kept_below(first, model)
    files = {WEIGHTS: checkpoint.dump(release(model))}
    return Output(files, done.cost.gradients, changed, kept, merging)


def attacked(worker: Worker, stage: Stage) -> Output:
    """Apply the stage's attack to its input `model`: weights, the attack's curve, and scores at the curve's end."""
    problem, label = worker.problem(stage), stage.attack
    assert label is not None
    model, original = worker.model_and_original(stage)
    attack, seed = worker.plan.attacks[label], worker.plan.seeds.attack(stage)
    adapter, where = worker.plan.adapters.get(("attack", label)), f"attack {label!r}"
    given = adapting.given(model, adapter, seed, where)
    done = attack(given, worker.case(stage, original), seed, **worker.statistics(stage))
    result, merging = adapting.taken(done.model, adapter, problem, where)
    curve = {"steps": torch.from_numpy(done.curve.steps), "values": torch.from_numpy(done.curve.values)}
    end = _end_of(done.curve.values, done.curve.ids, problem)
    files = {
        WEIGHTS: checkpoint.dump(release(result)),
        CURVE: save_tensors(curve),
        SCORES: score_files.dumps([end]),
    }
    return Output(files, done.cost.gradients, merging=merging)


def _end_of(values: np.ndarray, ids: np.ndarray, problem: Problem) -> Scores:
    group = None if problem.data.groups is None else problem.data.group_of(torch.from_numpy(ids)).numpy()
    return Scores("known_at_end", "forget", values[-1], ids, "description", "share", "reference", group=group)


def training_cost(plan: Parts) -> float:
    """Per-example gradients of training one model."""
    return plan.training.epochs * len(plan.data.train)


def unlearning_cost(plan: Parts, label: str) -> float:
    """Per-example gradients that a method expects to compute; one pass over the training set for plain functions."""
    method = plan.methods[label]
    if "recipe" in getattr(method, "needs", ()):
        return training_cost(plan)
    return method.expected_gradients(*plan.sizes) if isinstance(method, Method) else len(plan.data.train)


def attack_cost(plan: Parts, label: str | None) -> float:
    """Per-example gradients of an attack."""
    return len(plan.data.train) * setting(plan.attacks[label or ""], "epochs", 1)
