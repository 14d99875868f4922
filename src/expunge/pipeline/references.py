"""Retrained models are checked, not believed: each differs from the others, and fits the data as the original does."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.base.memory import MemoryStore
from expunge.base.store import Store
from expunge.core.generators import generator_of
from expunge.core.problem import Problem
from expunge.evidence.table import ORIGINAL, REFERENCE
from expunge.pipeline.parts import Parts
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
                raise _same(first, stage)


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
    error = math.sqrt(sum(float(v.var(correction=0)) / len(v) for v in (forget, unseen)) + 1 / (len(forget) + 2) ** 2)
    if float(forget.mean() - unseen.mean()) > max(DEVIATIONS * error, SAID):
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
