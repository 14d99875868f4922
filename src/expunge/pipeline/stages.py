"""What each kind of stage computes, from stored inputs to stored outputs, in a worker of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from expunge.base.errors import ExpungeError, RunError
from expunge.base.record import Store, spelled
from expunge.base.seeds import derive
from expunge.core import checkpoint
from expunge.core.case import Case, Meter, Shadows, train_model
from expunge.core.device import computing, device_name
from expunge.core.problem import Problem
from expunge.core.seeding import forked
from expunge.evidence import scores as score_files
from expunge.evidence.scores import Scores
from expunge.pipeline.gallery import gallery
from expunge.pipeline.plan import Plan, Stage

Files = dict[str, bytes]
WEIGHTS, SCORES = "weights.safetensors", "scores.safetensors"
CURVE, MEASURED = "curve.safetensors", "measured.safetensors"
ESTIMATES = "estimates.json"
EXAMPLES = "examples.json"


@dataclass
class Worker:
    """A process's view of a run: its plan, its store, and what it has loaded so far."""

    plan: Plan
    store: Store
    _problems: dict[int | None, Problem] = field(default_factory=dict)

    @cached_property
    def _by_key(self) -> dict[str, Stage]:
        return {stage.key: stage for stage in self.plan.stages}

    def run(self, stage: Stage) -> dict[str, Any]:
        """Compute a stage and store its output.

        Args:
            stage: Whose needs are in the store.

        Returns:
            Its cost: seconds, and per-example gradients where there are any.

        Raises:
            ExpungeError: The stage failed; names it.
        """
        torch.set_num_threads(self.plan.spec.threads)
        start = time.perf_counter()
        # Diagnostics look at curvature, which needs more digits than bfloat16 has.
        precision = "float32" if stage.kind == "diagnostic" else self.plan.spec.precision
        try:
            # Parts of the user's may draw from global state.
            with computing(precision), forked(derive(_seed_of(stage), "stage", stage.kind, stage.part)):
                files, gradients = _KINDS[stage.kind](self, stage)
        except ExpungeError as error:
            raise type(error)(
                error.finding,
                where=f"{stage.name}: {error.where}" if error.where else stage.name,
                allowed=error.allowed,
                remedy=error.remedy,
            ) from None
        facts = {
            "stage": stage.name,
            "gradients": gradients,
            "seconds": round(time.perf_counter() - start, 3),
            "device": device_name(self.plan.device),
            "precision": precision,
        }
        self.store.put(stage.key, files, facts)
        return facts

    def problem(self, stage: Stage) -> Problem:
        """The problem of the stage's seed."""
        if stage.seed not in self._problems:
            assert stage.seed is not None
            found = [key for key in stage.needs if key in self._by_key and self._by_key[key].kind == "measure"]
            measured = load_tensors(self.store.path(found[0], MEASURED).read_bytes()) if found else {}
            self._problems[stage.seed] = self.plan.problem(stage.seed, measured)
        return self._problems[stage.seed]

    def model(self, key: str, problem: Problem) -> nn.Module:
        """The stored model with this key, in evaluation mode."""
        recipe = self.plan.recipe(problem.data)
        path = self.store.path(key, WEIGHTS)
        return checkpoint.load(recipe.build(0), path).eval()

    def needed(self, stage: Stage, kinds: Iterable[str], model: str | None = None) -> str:
        """The key of the stage's input of one of these kinds."""
        for key in stage.needs:
            candidate = self._by_key.get(key)
            if candidate is not None and candidate.kind in kinds and model in (None, candidate.model):
                return key
        raise RunError(f"no input of kind {'/'.join(kinds)}", where=stage.name)


def _measure(worker: Worker, stage: Stage) -> tuple[Files, int]:
    plan = worker.plan
    measured = plan.task.measure(plan.data, plan.recipe(plan.data), derive(0, "measure"))
    return {MEASURED: save_tensors({name: tensor.contiguous() for name, tensor in measured.items()})}, 0


def _original(worker: Worker, stage: Stage) -> tuple[Files, int]:
    problem = worker.problem(stage)
    model = worker.plan.original(problem.data)
    if model is None:
        return _trained(worker, stage, problem.train)
    # One forward pass now, so that an output of the wrong width is reported here and not deep in a method.
    with torch.no_grad():
        problem.objective.measure(model.eval(), problem.data.batch(problem.test[:2]))
    return {WEIGHTS: checkpoint.dump(model)}, 0


def _reference(worker: Worker, stage: Stage) -> tuple[Files, int]:
    return _trained(worker, stage, worker.problem(stage).reference_train)


def _trained(worker: Worker, stage: Stage, ids: Tensor) -> tuple[Files, int]:
    problem, meter = worker.problem(stage), Meter()
    # Original and reference of a seed share their initial weights: the stage's kind is not part of this seed.
    seed = derive(_seed_of(stage), "train")
    model = train_model(worker.plan.recipe(problem.data), problem.data, ids, seed, meter)
    return {WEIGHTS: checkpoint.dump(model)}, meter.gradients


def _seed_of(stage: Stage) -> int:
    """The run's seed; a shadow has one of its own, which it shares with the shadows of other models."""
    seed = stage.seed or 0
    return derive(seed, "shadow", stage.part) if stage.kind == "shadow" else seed


def _shadow(worker: Worker, stage: Stage) -> tuple[Files, int]:
    if stage.attack is not None:
        return _attack(worker, stage)
    if stage.model in ("original", "reference"):
        problem = worker.problem(stage)
        return _trained(worker, stage, problem.train if stage.model == "original" else problem.reference_train)
    return _unlearn(worker, stage)


def _unlearn(worker: Worker, stage: Stage) -> tuple[Files, int]:
    problem = worker.problem(stage)
    start = worker.model(worker.needed(stage, ["original", "shadow", "unlearn"]), problem)
    chain = worker.plan.spec.chain(stage.model)
    # With the names of those before it, a method after itself does not draw the same numbers again.
    seed = derive(_seed_of(stage), "unlearn", *(entry.name for entry in chain))
    method, recipe = worker.plan.methods[stage.model], worker.plan.recipe(problem.data)
    done = method(start, problem, recipe, seed, chain[-1].budget)
    return {WEIGHTS: checkpoint.dump(done.model)}, done.cost.gradients


def _attack(worker: Worker, stage: Stage) -> tuple[Files, int]:
    problem, label = worker.problem(stage), stage.attack
    assert label is not None
    model = worker.model(worker.needed(stage, ["original", "reference", "unlearn", "shadow"]), problem)
    case = Case(stage.seed or 0, problem, model, worker.plan.recipe(problem.data))
    # The same seed for every model, and one for the shadows of a number: the same attack. A label is no part of it,
    # nor of the stage's key.
    seed = derive(_seed_of(stage), "attack", worker.plan.name_of("attack", label))
    done = worker.plan.attacks[label](model, case, seed)
    curve = {"steps": torch.from_numpy(done.curve.steps), "values": torch.from_numpy(done.curve.values)}
    end = _end_of(done.curve.values, done.curve.ids, problem)
    files = {
        WEIGHTS: checkpoint.dump(done.model),
        CURVE: save_tensors(curve),
        SCORES: score_files.dumps([end]),
    }
    return files, done.cost.gradients


def _end_of(values: np.ndarray, ids: np.ndarray, problem: Problem) -> Scores:
    group = None if problem.data.groups is None else problem.data.group_of(torch.from_numpy(ids)).numpy()
    return Scores("known_at_end", "forget", values[-1], ids, "description", "share", "reference", group=group)


def _audit(worker: Worker, stage: Stage) -> tuple[Files, int]:
    problem = worker.problem(stage)
    # The audited model is the first need that is one, its basis (the original) the last.
    keys = [key for key in stage.needs if worker._by_key[key].kind not in ("measure", "shadow")]
    model, basis = worker.model(keys[0], problem), worker.model(keys[-1], problem)
    case = Case(
        stage.seed or 0, problem, basis, worker.plan.recipe(problem.data), shadows=_shadows(worker, stage, problem)
    )
    seed = derive(stage.seed or 0, "audit", worker.plan.name_of("audit", stage.part))
    found = worker.plan.audits[stage.part](model, case, seed)
    return {SCORES: score_files.dumps(found)}, 0


def _diagnostic(worker: Worker, stage: Stage) -> tuple[Files, int]:
    problem = worker.problem(stage)
    original = worker.model(worker.needed(stage, ["original"]), problem)
    case = Case(stage.seed or 0, problem, original, worker.plan.recipe(problem.data))
    # C-scores belong to the data, not to a seed of the run.
    found = worker.plan.diagnostics[stage.part](case, derive(0, "probe", worker.plan.name_of("diagnostic", stage.part)))
    estimates = {name: spelled(estimate.as_json()) for name, estimate in found.items()}
    return {ESTIMATES: json.dumps(estimates, indent=1, allow_nan=False).encode()}, 0


def _gallery(worker: Worker, stage: Stage) -> tuple[Files, int]:
    problem = worker.problem(stage)
    stages = [worker._by_key[key] for key in stage.needs]
    models = (((s.model, s.attack), worker.model(s.key, problem)) for s in stages if s.kind != "measure")
    found = gallery(problem, models, stage.seed or 0)
    return {EXAMPLES: json.dumps(found, ensure_ascii=False, indent=1).encode()}, 0


def _shadows(worker: Worker, stage: Stage, problem: Problem) -> Shadows | None:
    around = [worker._by_key[key] for key in stage.needs if worker._by_key[key].kind == "shadow"]
    if not around:
        return None
    never = [s.key for s in around if s.model == "reference"]
    knew = [s.key for s in around if s.model != "reference"]
    return Shadows([worker.model(key, problem) for key in knew], [worker.model(key, problem) for key in never])


_KINDS: dict[str, Callable[[Worker, Stage], tuple[Files, int]]] = {
    "measure": _measure,
    "original": _original,
    "reference": _reference,
    "unlearn": _unlearn,
    "shadow": _shadow,
    "attack": _attack,
    "audit": _audit,
    "diagnostic": _diagnostic,
    "gallery": _gallery,
}
