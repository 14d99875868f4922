"""How hard the forget set is, in one number: how many steps of a plan it takes until half of it is gone.

The plan is descent on the retain set with ascent on the forget set and heavy-ball momentum, as in `stability_limit`.
What it does to the answers is followed in function space (`numerics.function_space`): gradients of the logits are held,
the loss is not, and no gradient is taken to be zero. So the number knows how surely examples are known, how far they
share weights with what stays, and how much of each is its own.

Networks move away from their linearisation, so that the order of forget sets is what to rely on, not the number.

Cost: at most `epochs` passes over the training set; with 80 examples of ten classes about 3,200 gradients, three times
as many where no parameter has a product form, and a few seconds of linear algebra. Classifiers only: a language model's
vocabulary is too many logits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.base.errors import MissingError
from expunge.base.part import Count, Positive, Share
from expunge.base.seeds import derive
from expunge.core.case import Case
from expunge.core.contracts import Probe
from expunge.core.problem import Problem
from expunge.diagnose._halves import Part, over_halves
from expunge.diagnose._rows import logit_gram, sampled_within
from expunge.diagnose._sample import Momentum, about
from expunge.diagnose.coherence import one_by_one, parts_of
from expunge.evidence.estimate import Estimate
from expunge.numerics.function_space import Course, course
from expunge.numerics.linearised import Draw, Update

FORETOLD = "hardness: steps until half of what is known is gone, as linearised"
DAMAGE = "retained examples lost by then, as linearised"
GONE = 0.5
"""Share of what the original knows of the forget set at which it counts as gone."""


@dataclass(frozen=True)
class Sampled:
    """Gram matrix of the logits, logits and targets of a sample, the retained examples first."""

    gram: Tensor
    logits: Tensor
    targets: Tensor
    retained: int
    parts: list[Part]
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
class Hardness(Probe):
    """Steps of a plan of descent and ascent until half of the forget set is no longer known."""

    learning_rate: Positive = 2e-3
    """Planned step size."""
    mix: Share = 0.2
    """Weight of the ascent on the forget set; the descent on the retain set has what is left to 1."""
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

    def __call__(self, case: Case, seed: int) -> dict[str, Estimate]:
        """Steps as linearised, with a 90 % interval for the choice of the sample, and damage.

        Raises:
            MissingError: The model answers with tokens.
            SpecError: No parameter of the model takes a gradient, or the budget affords no example.
            RunError: A loss is not finite.
        """
        generator = torch.Generator().manual_seed(derive(seed, "hardness"))
        sampled = self.look(case, generator)

        def log_steps(places: Sequence[Tensor]) -> float:
            return math.log(self.foretold(sampled, case.problem, places)[0])

        logs = over_halves(log_steps, sampled.parts, generator, unit="log steps")
        low, value, high = (math.exp(end) for end in (logs.low, logs.value, logs.high))
        lost = self.foretold(sampled, case.problem)[1]
        return {
            FORETOLD: Estimate(value, low, high, logs.n, "steps", "reference"),
            DAMAGE: Estimate(lost, math.nan, math.nan, sampled.retained, "share", "lower"),
            **sampled.one_by_one,
        }

    def look(self, case: Case, generator: torch.Generator) -> Sampled:
        """The sample, and how its answers pull at each other; what takes gradients, whatever the plan.

        Raises:
            MissingError: The model answers with tokens.
            SpecError: No parameter of the model takes a gradient, or the budget affords no example.
            RunError: A loss is not finite.
        """
        data = case.problem.data
        if data.kind != "classes":
            remedy = "leave this probe out"
            raise MissingError("follows every logit, and a vocabulary is too many", where="hardness", remedy=remedy)
        sample = sampled_within(case, (self.retain, self.forget), len(data.labels), self.epochs, generator)
        with about(case):
            gram, logits, targets = logit_gram(sample)
        matrix = gram.matrix.double().cpu()
        named = one_by_one(sample, gram.unsupported)
        return Sampled(matrix, logits.cpu(), targets.cpu(), len(sample.retain), parts_of(sample), named)

    def foretold(
        self, sampled: Sampled, problem: Problem, places: Sequence[Tensor] | None = None
    ) -> tuple[float, float]:
        """As linearised: steps until half of what is known is gone, at least 1, and the share of retained ones lost.

        Args:
            sampled: What `look` returned.
            problem: Whose sets the sample is of.
            places: Positions in the sample of either set; all by default.

        Returns:
            `steps` itself where the set is still known then.
        """
        retain, forget = (Draw(len(ids), len(ids)) for ids in (problem.retain, problem.forget))
        plan = Update(self.learning_rate, self.mix, retain, forget, self.momentum)
        found = sampled.course(plan, self.steps, places)
        lost = max(float(found.retain[0] - found.retain[-1]), 0.0)
        return float(max(len(found.forget) - 1, 1)), lost

    def told(self, found: Mapping[str, Estimate]) -> str:
        """How long the plan takes, and what it costs the retain set."""
        steps, damage = found[FORETOLD].value, found[DAMAGE].value
        plan = f"neggrad_plus with sgd, alpha = {1 - self.mix:g}, learning_rate = {self.learning_rate:g}"
        if steps >= self.steps * (1 - 1e-9):
            return f"As {plan}: within {self.steps} steps the forget set does not go; raise learning_rate or mix."
        return (
            f"As {plan}: about {steps:,.0f} steps until half of what is known of the forget set is gone, were the "
            f"network linear. By then {100 * damage:.2g} % of the retained examples are foretold to be lost."
        )
