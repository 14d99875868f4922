"""References are checked, not believed: each differs from the others, and fits the data as the original does.

A model that the user gives as a reference must also know the forget set less well than the original, or no better than
unseen examples: otherwise it was trained on it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.base.memory import MemoryStore
from expunge.base.store import Store
from expunge.core import checkpoint
from expunge.core.generators import generator_of
from expunge.core.hf_folder import load_folder
from expunge.core.modules import weights_differ
from expunge.core.problem import Problem
from expunge.core.tokens import require_same_tokenizer
from expunge.evidence.table import ORIGINAL, REFERENCE
from expunge.pipeline.parts import Parts
from expunge.pipeline.plan import Plan
from expunge.pipeline.stage import WEIGHTS, Stage
from expunge.reporting.progress import Progress
from expunge.train.evaluation import measured

SAMPLE = 500
"""Most examples of a set on which original and reference are compared."""
REFUSED, SAID = 0.25, 0.1
"""Differences of utility on the retain set, as shares, from which a reference is refused, or only mentioned."""
DEVIATIONS = 3.0
"""Standard errors by which a reference must know the forget set better than the test set to be mentioned."""


class Distinct:
    """Refuses a trained model with the same weights as another one: they would count as two and are one.

    Args:
        plan: The plan of the stages.
        store: Holds their outputs.
    """

    def __init__(self, plan: Parts, store: Store | MemoryStore) -> None:
        self.plan, self.store = plan, store
        self._seen: dict[tuple[str, str], Stage] = {}

    def add(self, stage: Stage) -> None:
        """Compare a finished stage with all earlier ones.

        Raises:
            SpecError: Another training gave the same weights.
        """
        trains = stage.kind == "reference" or (stage.kind == "shadow" and stage.attack is None)
        if stage.kind == "original" or (trains and stage.model in (ORIGINAL, REFERENCE)):
            digest = self.store.facts(stage.key)["files"][WEIGHTS]
            # Shadow models share seeds with each other by design, but never with other models.
            first = self._seen.setdefault(("shadow" if stage.kind == "shadow" else "", digest), stage)
            if first.key != stage.key:
                raise _same(first, stage) if self.plan.trains else _same_given(first, stage)


def _same(first: Stage, second: Stage) -> SpecError:
    if first.kind == "original" and second.kind == "reference":
        return SpecError(
            "training without the forget set gave the weights of the original",
            where=second.name,
            allowed="a training that depends on the data set that it is given",
            remedy="do not load trained weights inside build or train, and train on the argument only",
        )
    return SpecError(
        f"its weights equal those of {first.name!r}: they are one model and would count as two",
        where=second.name,
        allowed="trainings that differ from seed to seed",
        remedy="do not set seeds inside build or train; if nothing in the training is random, use one reference",
    )


def _same_given(first: Stage, second: Stage) -> SpecError:
    return SpecError(
        f"its weights equal those of {first.name!r}: they are one model and would count as two",
        where=f"{second.name} (references)",
        allowed="models from trainings of their own",
        remedy="check the paths",
    )


def given_reference(plan: Plan, stage: Stage, problem: Problem) -> nn.Module:
    """The user's own reference of a seed.

    Raises:
        SpecError: It is no model of the spec's architecture, fits the retain set unlike the original, or knows the
            forget set as a model does that was trained on it.
    """
    number = plan.spec.seeds.index(stage.seed or 0)
    path, where = plan.given_references[number], f"references[{number}]"
    if path.is_dir():
        require_same_tokenizer(problem.data.tokenizer, path, where)
    load = load_folder if path.is_dir() else checkpoint.load
    model = load(plan.fresh(stage, problem.data), path, where).eval()
    original = plan.original(problem.data)
    assert original is not None, "only a run about one model takes references of the user's"
    if not weights_differ(original, model):
        finding, allowed = "its weights are those of the original", "a model that was trained without the forget set"
        raise SpecError(finding, where=where, allowed=allowed, remedy="check the path")
    _refuse_informed(model, original, problem, where)
    refuse_unlike(model, original, problem, where)
    return model


def _refuse_informed(reference: nn.Module, original: nn.Module, problem: Problem, where: str) -> None:
    """Refuse a reference that knows the forget set as the original does, and clearly better than unseen examples."""
    metric = next((metric for metric in problem.objective.metrics if metric.utility), None)
    if metric is None or metric.unit != "share":
        return
    forget, unseen = _sample(problem.forget), _sample(problem.holdout if len(problem.holdout) else problem.test)
    theirs = _values(original, problem, forget, metric.name)
    ours, others = (_values(reference, problem, ids, metric.name) for ids in (forget, unseen))
    member = float(ours.mean() - others.mean()) > max(DEVIATIONS * _error(ours, others), SAID)
    if member and float(theirs.mean() - ours.mean()) <= DEVIATIONS * _error(theirs, ours):
        raise SpecError(
            f"{metric.name} on the forget set is {100 * float(ours.mean()):.1f} %, {100 * float(theirs.mean()):.1f} % "
            f"for the original, and {100 * float(others.mean()):.1f} % on unseen examples: it knows the forget set",
            where=where,
            allowed="a model that was trained without the forget set",
            remedy='take the forget set and its copies out of its training data, or set references = "none"',
        )


def _error(first: Tensor, second: Tensor) -> float:
    """Standard error of the difference of two means; never 0, because samples are small."""
    sampling = sum(float(values.var(correction=0)) / len(values) for values in (first, second))
    return math.sqrt(sampling + 1 / (len(first) + 2) ** 2)


def refuse_unlike(reference: nn.Module, original: nn.Module, problem: Problem, where: str) -> None:
    """Refuse a reference that fits the retain set much worse than the user's original, or much better.

    Such a reference was not made as the original was, and a difference to it says nothing about forgetting. A smaller
    difference, and a reference that knows the forget set without having seen it, are mentioned on stderr.

    Args:
        reference: The retrained model.
        original: The user's model.
        problem: Gives retain, forget and test set, and the objective.
        where: Name of the reference, for messages.

    Raises:
        SpecError: The utility metric on the retain set differs by more than `REFUSED`.
    """
    metric = next((metric for metric in problem.objective.metrics if metric.utility), None)
    if metric is None or metric.unit != "share":
        return
    retain, test = _sample(problem.reference_train), _sample(problem.test)
    ours, theirs = (_values(model, problem, retain, metric.name) for model in (reference, original))
    fit, expected = float(ours.mean()), float(theirs.mean())
    finding = (
        f"{metric.name} on {len(retain)} retain examples is {100 * fit:.1f} %, and {100 * expected:.1f} % "
        "for the original"
    )
    if not abs(fit - expected) <= REFUSED:
        raise SpecError(
            finding,
            where=where,
            allowed="a reference that fits its training data as the original does",
            remedy="train references as the original was trained: the same module, data, epochs and step size",
        )
    if abs(fit - expected) > SAID:
        Progress().say(f"{where}: {finding}; verdicts hold only if references are trained as the original was")
    forget, unseen = (_values(reference, problem, ids, metric.name) for ids in (_sample(problem.forget), test))
    if float(forget.mean() - unseen.mean()) > max(DEVIATIONS * _error(forget, unseen), SAID):
        Progress().say(
            f"{where}: {metric.name} is {100 * float(forget.mean()):.1f} % on the forget set and "
            f"{100 * float(unseen.mean()):.1f} % on the test set; check that train sees no forget examples, and that "
            "the retain set holds no copies of them"
        )


def _values(model: nn.Module, problem: Problem, ids: Tensor, metric: str) -> Tensor:
    # An explained share of the variance has no lower end.
    return torch.from_numpy(measured(model, problem, ids)[metric]).clamp(min=0)


def _sample(ids: Tensor) -> Tensor:
    if len(ids) <= SAMPLE:
        return ids
    return ids[torch.randperm(len(ids), generator=generator_of(0, "reference"))[:SAMPLE]]
