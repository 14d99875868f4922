"""How hard the forget set is, in one number: how many steps of a plan it takes until half of it is gone.

The plan is descent on the retain set with ascent on the forget set and heavy-ball momentum, as in `stability_limit`.
What it does to the answers is followed in function space (`numerics.function_space`): gradients of the logits are held,
the loss is not, and no gradient is taken to be zero. So the number knows how surely examples are known, how far they
share weights with what stays, and how much of each is its own.

It is *calibrated*: networks move away from their linearisation, so that the steps measured over many runs, on hard,
easy and random examples, whole classes and wrong labels, were fitted by a power of the predicted ones (`hardness.json`,
made by `scripts/calibrate.py` from the study `stability`, runs that were stopped counted as at least so long). The
interval is for a new run: it holds the scatter of these runs, which is a factor of several, and the error of the
sample. What was calibrated is SGD on small MLPs; for other models the order of forget sets is what to rely on.

Cost: at most `epochs` passes over the training set; with 80 examples of ten classes about 3,200 gradients, three times
as many where no parameter has a product form, and a few seconds of linear algebra. Classifiers only: a language model's
vocabulary is too many logits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

from torch import Tensor

from expunge.base.part import Positive, Share
from expunge.core.case import Case
from expunge.core.generators import generator_of
from expunge.diagnostics._halves import over_halves
from expunge.diagnostics._logit_diagnostic import LogitDiagnostic
from expunge.evidence.estimate import Estimate

HARDNESS = "hardness: steps until half of what is known is gone"
PREDICTED = "the same, as linearised"
NINE_OF_TEN = 1.645
"""Half the width of the 90 % interval of a normal number, in standard deviations."""
DAMAGE = "retained examples lost by then, as linearised"


class Calibration(NamedTuple):
    """log(measured) = intercept + slope log(predicted) + noise."""

    intercept: float
    slope: float
    spread: float
    """Standard deviation of the noise."""
    left_out: float
    """Share of runs that fell into the 90 % interval of a fit to other seeds."""
    runs: int

    @classmethod
    def load(cls) -> Calibration:
        """What ships with the package."""
        path = Path(__file__).with_name("hardness.json")
        return cls(**json.loads(path.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Hardness(LogitDiagnostic):
    """Steps of a plan of descent and ascent until half of the forget set is no longer known."""

    version: ClassVar[int] = 2

    learning_rate: Positive = 2e-3
    """Planned step size."""
    ascent_weight: Share = 0.2
    """Weight of the ascent on the forget set; the descent on the retain set has what is left to 1."""

    def __call__(self, case: Case, seed: int) -> dict[str, Estimate]:
        """Steps with 90 % intervals for a run of the plan, as linearised for the choice of the sample, and damage.

        Raises:
            MissingError: The model answers with tokens.
            SpecError: No parameter of the model takes a gradient, or the budget affords no example.
            RunError: A loss is not finite.
        """
        generator = generator_of(seed, "hardness")
        sampled, plan = self.look(case, generator), (self.learning_rate, self.ascent_weight)

        def log_steps(places: Sequence[Tensor]) -> float:
            return math.log(self.predicted(sampled, case.problem, *plan, places)[0])

        logs = over_halves(log_steps, sampled.parts, generator, unit="log steps")
        lost = self.predicted(sampled, case.problem, *plan)[1]
        return {
            HARDNESS: self._expected(logs),
            PREDICTED: self._followed(logs),
            DAMAGE: Estimate(lost, math.nan, math.nan, sampled.retained, "share", "lower"),
            **sampled.one_by_one,
        }

    def _followed(self, logs: Estimate) -> Estimate:
        """As linearised; what is not within the steps that are followed is infinite, as it is when calibrated."""
        most = math.log(self.steps)
        if logs.value >= most:
            return Estimate(math.inf, math.nan, math.nan, logs.n, "steps", "reference")
        # Taking the bias off a sample extrapolates; beyond the cap, where no course was followed, that is no number.
        high = math.inf if logs.high >= most else math.exp(logs.high)
        return Estimate(math.exp(logs.value), math.exp(min(logs.low, most)), high, logs.n, "steps", "reference")

    def _expected(self, logs: Estimate) -> Estimate:
        """Calibrated, with an interval for one run; of a set that does not go within the steps, no number."""
        if logs.value >= math.log(self.steps):
            return Estimate(math.inf, math.nan, math.nan, logs.n, "steps", "reference")
        found = Calibration.load()
        centre = found.intercept + found.slope * logs.value
        sampling = found.slope * (logs.high - logs.low) / 2
        half = math.hypot(NINE_OF_TEN * found.spread, 0.0 if math.isnan(sampling) else sampling)
        low, value, high = (math.exp(end) for end in (centre - half, centre, centre + half))
        return Estimate(value, low, high, logs.n, "steps", "reference")

    def summary(self, found: Mapping[str, Estimate]) -> str:
        """How long the plan takes; the predicted damage is no sentence, since what is measured did not follow it."""
        hard = found[HARDNESS]
        plan = f"neggrad_plus with sgd, alpha = {1 - self.ascent_weight:g}, learning_rate = {self.learning_rate:g}"
        if math.isinf(hard.value):
            more = "raise learning_rate or ascent_weight"
            return f"As {plan}: within {self.steps} steps the forget set does not go; {more}."
        return (
            f"As {plan}: about {hard.value:,.0f} steps until half of what is known of the forget set is gone, from "
            f"{hard.low:,.0f} to {hard.high:,.0f} in nine runs of ten like those that this was calibrated on."
        )
