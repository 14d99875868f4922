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

from expunge.base.part import Positive, Share
from expunge.base.seeds import derive
from expunge.core.case import Case
from expunge.evidence.estimate import Estimate
from expunge.probes._halves import over_halves
from expunge.probes._logit_probe import LogitProbe

FORETOLD = "hardness: steps until half of what is known is gone, as linearised"
DAMAGE = "retained examples lost by then, as linearised"


@dataclass(frozen=True)
class Hardness(LogitProbe):
    """Steps of a plan of descent and ascent until half of the forget set is no longer known."""

    learning_rate: Positive = 2e-3
    """Planned step size."""
    mix: Share = 0.2
    """Weight of the ascent on the forget set; the descent on the retain set has what is left to 1."""

    def __call__(self, case: Case, seed: int) -> dict[str, Estimate]:
        """Steps as linearised, with a 90 % interval for the choice of the sample, and damage.

        Raises:
            MissingError: The model answers with tokens.
            SpecError: No parameter of the model takes a gradient, or the budget affords no example.
            RunError: A loss is not finite.
        """
        generator = torch.Generator().manual_seed(derive(seed, "hardness"))
        sampled, plan = self.look(case, generator), (self.learning_rate, self.mix)

        def log_steps(places: Sequence[Tensor]) -> float:
            return math.log(self.foretold(sampled, case.problem, *plan, places)[0])

        logs = over_halves(log_steps, sampled.parts, generator, unit="log steps")
        low, value, high = (math.exp(end) for end in (logs.low, logs.value, logs.high))
        lost = self.foretold(sampled, case.problem, *plan)[1]
        return {
            FORETOLD: Estimate(value, low, high, logs.n, "steps", "reference"),
            DAMAGE: Estimate(lost, math.nan, math.nan, sampled.retained, "share", "lower"),
            **sampled.one_by_one,
        }

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
