"""What diagnostics of a classifier's logits share: a sample whose logits are followed without taking a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from expunge.base.errors import MissingError
from expunge.base.part import Count, Positive
from expunge.core.case import Case
from expunge.core.contracts import Diagnostic
from expunge.core.problem import Problem
from expunge.diagnostics._halves import SampledSet
from expunge.diagnostics._rows import logit_gram, sampled_within
from expunge.diagnostics._sample import Momentum, about
from expunge.diagnostics.coherence import one_by_one, parts_of
from expunge.evidence.estimate import Estimate
from expunge.numerics.function_space import Course, course
from expunge.numerics.linearised import Draw, Update

GONE = 0.5
"""Share of what the original knows of the forget set at which it counts as gone."""


@dataclass(frozen=True)
class Sampled:
    """Gram matrix of the logits, logits and targets of a sample, the retained examples first."""

    gram: Tensor
    logits: Tensor
    targets: Tensor
    retained: int
    parts: list[SampledSet]
    one_by_one: dict[str, Estimate]
    """What had no product form."""

    def course(self, update: Update, steps: int, places: Sequence[Tensor] | None = None) -> Course:
        """Follow some of both sets, or all of them, until half of what is known is gone."""
        first, second = places or [torch.arange(len(part.groups)) for part in self.parts]
        at, classes = torch.cat([first, second + self.retained]), self.logits.shape[1]
        rows = (at[:, None] * classes + torch.arange(classes)).flatten()
        logits, targets = self.logits[at], self.targets[at]
        known = float((logits.argmax(1) == targets)[len(first) :].double().mean())
        gram = self.gram[rows][:, rows]
        return course(gram, logits, targets, len(first), update, steps, until=GONE * known)


@dataclass(frozen=True)
class LogitDiagnostic(Diagnostic):
    """Base of the diagnostics that follow the answers of a sample under descent on retain and ascent on forget."""

    gone: ClassVar[float] = GONE

    momentum: Momentum = 0.9
    """Of the heavy ball, as that of the library's `sgd`."""
    retain: Count = 40
    """Retain examples looked at, fewer where the budget is short."""
    forget: Count = 40
    """Forget examples looked at, likewise."""
    steps: Count = 1000
    """Most steps that are followed."""
    epochs: Positive = 2.0
    """Most that this may cost, in passes over the training set."""

    def look(self, case: Case, generator: torch.Generator) -> Sampled:
        """The sample, and how its answers pull at each other; what takes gradients, whatever the plan.

        Raises:
            MissingError: The model answers with tokens.
            SpecError: No parameter of the model takes a gradient, or the budget affords no example.
            RunError: A loss is not finite.
        """
        data = case.problem.data
        if not data.has_classes:
            where, remedy = type(self).__name__.lower(), "leave this diagnostic out"
            raise MissingError("follows every logit, and a vocabulary is too many", where=where, remedy=remedy)
        sample = sampled_within(case, (self.retain, self.forget), len(data.labels), self.epochs, generator)
        with about(case):
            gram, logits, targets = logit_gram(sample)
        matrix, named = gram.matrix.double().cpu(), one_by_one(sample, gram.unsupported)
        return Sampled(matrix, logits.cpu(), targets.cpu(), len(sample.retain), parts_of(sample), named)

    def predicted(
        self,
        sampled: Sampled,
        problem: Problem,
        learning_rate: float,
        ascent_weight: float,
        places: Sequence[Tensor] | None = None,
    ) -> tuple[float, float]:
        """As linearised: steps until half of what is known is gone, at least 1, and the share of retained ones lost.

        Args:
            sampled: What `look` returned.
            problem: Whose sets the sample is of.
            learning_rate: Step size.
            ascent_weight: Weight of the ascent.
            places: Positions in the sample of either set; all by default.

        Returns:
            `steps` itself where the set is still known then.
        """
        retain, forget = (Draw(len(ids), len(ids)) for ids in (problem.retain, problem.forget))
        plan = Update(learning_rate, ascent_weight, retain, forget, self.momentum)
        found = sampled.course(plan, self.steps, places)
        lost = max(float(found.retain[0] - found.retain[-1]), 0.0)
        return float(max(len(found.forget) - 1, 1)), lost
