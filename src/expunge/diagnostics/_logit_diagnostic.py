"""Shared by the diagnostics of a classifier's logits: predict the logits of a sample without taking a step."""

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
"""The forget set counts as forgotten once the model knows at most this share of what the original knew."""


@dataclass(frozen=True)
class Sampled:
    """Gram matrix of the logits' gradients, logits and targets of a sample; the retained examples come first."""

    gram: Tensor
    logits: Tensor
    targets: Tensor
    retained: int
    parts: list[SampledSet]
    one_by_one: dict[str, Estimate]
    """The parameters without a product form, as an estimate of their share."""

    def course(self, update: Update, steps: int, places: Sequence[Tensor] | None = None) -> Course:
        """Follow the sample, or its given places, until half of what is known of the forget set is gone."""
        first, second = places or [torch.arange(len(part.groups)) for part in self.parts]
        at, classes = torch.cat([first, second + self.retained]), self.logits.shape[1]
        rows = (at[:, None] * classes + torch.arange(classes)).flatten()
        logits, targets = self.logits[at], self.targets[at]
        known = float((logits.argmax(1) == targets)[len(first) :].double().mean())
        gram = self.gram[rows][:, rows]
        return course(gram, logits, targets, len(first), update, steps, until=GONE * known)


@dataclass(frozen=True)
class LogitDiagnostic(Diagnostic):
    """Base of the diagnostics that predict the answers of a sample under descent on retain and ascent on forget."""

    gone: ClassVar[float] = GONE

    momentum: Momentum = 0.9
    """Momentum of the heavy ball; the library's `sgd` has 0.9."""
    retain: Count = 40
    """Retain examples to measure; fewer if the budget does not allow as many."""
    forget: Count = 40
    """Forget examples to measure; fewer if the budget does not allow as many."""
    steps: Count = 1000
    """Largest number of steps to predict."""
    epochs: Positive = 2.0
    """Largest cost of this diagnostic, in passes over the training set."""

    def look(self, case: Case, generator: torch.Generator) -> Sampled:
        """The sample with the Gram matrix of its logits; everything that takes gradients, independent of the plan.

        Raises:
            MissingError: The model predicts tokens.
            SpecError: No parameter of the model takes a gradient, or the budget affords no example.
            RunError: A loss is not finite.
        """
        data = case.problem.data
        if not data.has_classes:
            where, remedy = type(self).__name__.lower(), "leave this diagnostic out"
            raise MissingError("needs one gradient per logit; a vocabulary has too many", where=where, remedy=remedy)
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
        """What the linearised model predicts: steps until half of what is known is gone, and retained examples lost.

        Args:
            sampled: What `look` returned.
            problem: The problem that the sample comes from.
            learning_rate: Step size.
            ascent_weight: Weight of the ascent.
            places: Positions in the sample of each set; all by default.

        Returns:
            The number of steps, at least 1, or `steps` if more than half is still known then; and the share of
            retained examples lost.
        """
        retain, forget = (Draw(len(ids), len(ids)) for ids in (problem.retain, problem.forget))
        plan = Update(learning_rate, ascent_weight, retain, forget, self.momentum)
        path = sampled.course(plan, self.steps, places)
        lost = max(float(path.retain[0] - path.retain[-1]), 0.0)
        return float(max(len(path.forget) - 1, 1)), lost
