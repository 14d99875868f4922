"""Real forget sets: the predictions of linear stability for each, compared with measured steps and outcomes.

An MLP on Fashion-MNIST is trained with Adam. Then SGD with momentum descends on the retain set and ascends on the
forget set until half of what is known of the forget set is gone. Claims rank by the first plan; all plans calibrate
`diagnostics.hardness`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.audits.membership import Membership
from expunge.base.seeds import derive
from expunge.core.case import Case, train_model
from expunge.core.contracts import Task
from expunge.core.modules import trainable
from expunge.core.problem import Problem
from expunge.data.fashion_mnist import FashionMNIST
from expunge.diagnostics.hardness import Hardness
from expunge.diagnostics.recommendation import MIX, STEP, STEPS, Recommendation
from expunge.diagnostics.stability_limit import RATE_SQUARE, StabilityLimit
from expunge.models.mlp import MLP
from expunge.tasks.easy_examples import EasyExamples
from expunge.tasks.hard_examples import HardExamples
from expunge.tasks.label_swap import LabelSwap
from expunge.tasks.random_subset import RandomSubset
from expunge.tasks.whole_class import WholeClass
from expunge.train.evaluation import known_share, losses
from expunge.train.loop import PairBatch, fit, in_order, paired
from expunge.train.optim import make_optimizer
from expunge.train.training import TrainedRecipe, Training

PLANS = ((2e-3, 0.2), (2e-3, 0.5), (5e-3, 0.1), (5e-4, 0.5))
"""Step size and weight of the ascent."""
METHODS = {"finetune": (5e-3, 0.0), "neggrad_plus": (2e-3, 0.2), "gradient_ascent": (2e-4, 1.0)}
"""The library's methods that are such plans with SGD; step size and mix of each."""
BATCH, FORGET_BATCH = 128, 64
LOOKED_AT = 24
"""Examples of each set to compute curvature of."""


def tasks(count: int, seed: int) -> dict[str, Task]:
    """The forget sets: hard, easy, random, a class (different for each seed), and wrong labels."""
    return {
        "hard": HardExamples(count=count),
        "easy": EasyExamples(count=count),
        "random": RandomSubset(count=count),
        "class": WholeClass(label=seed % 10),
        "noisy": LabelSwap(count=count),
    }


@dataclass(frozen=True)
class ForgetSetResult:
    """Predictions and measurements for one forget set."""

    predicted: Mapping[str, float]
    """`rate` of growth in mean square per step, `course` in steps, `cosine` of both sets' mean gradients, `loss` on the
    forget set, and `lost`, the share of retained examples lost by then."""
    measured: Mapping[str, float]
    """`steps` to forget, `membership` and `distance` at the exit as gaps to the retrained model, `damage` to retained
    accuracy."""
    plans: list[tuple[float, float]]
    """Predicted and measured steps of every plan; the largest allowed number if the set was not forgotten by then."""
    methods: dict[str, dict[str, float]]
    """For every method `rate` and `course`, `steps`, `membership` and `distance`."""
    recommended: tuple[float, float]
    """For the plan of `diagnostics.recommendation`: measured over predicted steps (at most 2), and damage."""


def look(task: Task, train: int, epochs: int, most: int, seed: int) -> ForgetSetResult:
    """Train, predict, unlearn in at most `most` steps, measure."""
    data = FashionMNIST(train=train)()
    recipe = TrainedRecipe(MLP(widths=[128, 64]), Training(epochs=epochs), data)
    measured = task.measure(data, recipe, seed) if task.measures else {}
    problem = task(data, seed, measured)
    original = train_model(recipe, problem.data, problem.train, seed)
    case = Case(seed, problem, original, recipe)
    kept, gone = (_mean_gradient(original, problem, ids) for ids in (problem.retain, problem.forget))
    courses = _predicted(case, (*PLANS, *METHODS.values()), most, seed)
    predicted = {
        "rate": _rate(case, *PLANS[0], seed),
        "course": courses[0][0],
        "cosine": float(kept @ gone / (kept.norm() * gone.norm()).clamp(min=1e-30)),
        "loss": float(losses(original, problem, problem.forget).mean()),
        "lost": courses[0][1],
    }
    runs = [_forgotten(original, problem, *plan, most, seed) for plan in PLANS]
    damage = known_share(original, problem, problem.retain) - known_share(runs[0][0], problem, problem.retain)
    outcome = {**_outcome(case, *runs[0], seed), "damage": damage}
    plans = [(course, float(run[1])) for (course, _), run in zip(courses, runs, strict=False)]
    methods = {
        name: {
            "rate": _rate(case, *plan, seed),
            "course": course,
            **_outcome(case, *_forgotten(original, problem, *plan, most, seed), seed),
        }
        for (course, _), (name, plan) in zip(courses[len(PLANS) :], METHODS.items(), strict=True)
    }
    return ForgetSetResult(predicted, outcome, plans, methods, _recommended(case, seed))


def _outcome(case: Case, student: nn.Module, steps: int, seed: int) -> dict[str, float]:
    """The number of steps, and the differences between the student and the retrained model."""
    attack = Membership(attack="loss", count=500)
    member, never = (attack(model, case, seed)[0].reduced() for model in (student, case.reference))
    distance = _divergence(case.reference, student, case.problem, case.problem.forget)
    return {"steps": float(steps), "membership": abs(member - never), "distance": distance}


def _recommended(case: Case, seed: int) -> tuple[float, float]:
    plan = Recommendation(batch_size=BATCH)(case, seed)
    predicted = plan[STEPS].value
    limit = 2 * math.ceil(predicted)
    student, steps = _forgotten(case.original, case.problem, plan[STEP].value, plan[MIX].value, limit, seed)
    before, after = (known_share(model, case.problem, case.problem.retain) for model in (case.original, student))
    return steps / predicted, before - after


def _rate(case: Case, rate: float, ascent_weight: float, seed: int) -> float:
    """Predicted growth per step; 0 for descent alone, which does not leave the minimum at a stable step size."""
    diagnostic = StabilityLimit(
        learning_rate=rate,
        ascent_weight=ascent_weight,
        batch_size=BATCH,
        forget_batch_size=FORGET_BATCH,
        retain=LOOKED_AT,
        forget=LOOKED_AT,
    )
    return diagnostic(case, seed)[RATE_SQUARE].value if ascent_weight > 0 else 0.0


def _predicted(case: Case, plans: Sequence[tuple[float, float]], most: int, seed: int) -> list[tuple[float, float]]:
    """Predicted steps of every plan, and the predicted share of retained examples lost by then, from one sample."""
    diagnostic = Hardness(steps=most)
    sampled = diagnostic.look(case, torch.Generator().manual_seed(derive(seed, "sample")))
    return [diagnostic.predicted(sampled, case.problem, *plan) for plan in plans]


def _forgotten(
    original: nn.Module, problem: Problem, rate: float, ascent_weight: float, most: int, seed: int
) -> tuple[nn.Module, int]:
    """The model after descent and ascent until half of what is known of the forget set is gone, and the steps taken."""
    student = copy.deepcopy(original).train()
    parameters, generator = trainable(student), torch.Generator().manual_seed(derive(seed, "forget"))
    data, objective = problem.data, problem.objective
    gone = Hardness.gone * known_share(original, problem, problem.forget)

    def until_gone() -> Iterator[PairBatch]:
        stream = paired(data, problem.retain, problem.forget, BATCH, FORGET_BATCH, most, generator)
        for pair, _ in zip(stream, range(most), strict=False):
            if known_share(student, problem, problem.forget) <= gone:
                return
            yield pair

    def mixed(pair: PairBatch) -> Tensor:
        kept, left = (objective.loss(student, batch) for batch in (pair.retain, pair.forget))
        return (1 - ascent_weight) * kept - ascent_weight * left

    done = fit(parameters, mixed, until_gone(), make_optimizer("sgd", parameters, rate))
    return student.eval(), done.steps


def _mean_gradient(model: nn.Module, problem: Problem, ids: Tensor) -> Tensor:
    parameters, total = trainable(model), torch.zeros(())
    for batch in in_order(problem.data, ids):
        slopes = torch.autograd.grad(problem.objective.loss(model, batch), parameters)
        total = total + torch.cat([slope.flatten() for slope in slopes]) * batch.size / len(ids)
    return total


def _divergence(reference: nn.Module, model: nn.Module, problem: Problem, ids: Tensor) -> float:
    """Mean KL(reference || model) on these examples, in nats."""
    with torch.no_grad():
        batch = problem.data.batch(ids)
        wanted, given = (
            problem.objective.decisions(network, batch).logits.log_softmax(1) for network in (reference, model)
        )
    value = float((wanted.exp() * (wanted - given)).sum(1).mean())
    return value if math.isfinite(value) else math.inf
