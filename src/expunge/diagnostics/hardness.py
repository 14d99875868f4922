"""How hard the forget set is, in one number: how many steps of a plan it takes to forget half of it.

The plan is descent on the retain set with ascent on the forget set and heavy-ball momentum, as in `stability_limit`.
Its effect on the answers is predicted in function space (`numerics.function_space`): the logits' gradients stay
constant, the loss is not linearised, and no gradient is assumed to be zero. So the number depends on how confidently
the model knows the examples, on how strongly they share weights with the retain set, and on how much of each is its
own.

It is *calibrated*, because networks move away from their linearisation. Steps were measured over many runs, on hard,
easy and random examples, whole classes and wrong labels, and fitted by a power of the predicted steps (`hardness.json`,
made by `scripts/calibrate.py` from the study `stability`; a run that was stopped counts as a lower bound). The interval
is for a new run: it includes the scatter of these runs, a factor of several, and the error of the sample. The
calibration covers SGD on small MLPs; for other models rely only on the order of forget sets.

Cost: at most `epochs` passes over the training set. With 80 examples of ten classes about 3,200 gradients, three times
as many if no parameter has a product form, and a few seconds of linear algebra. Classifiers only: a language model has
too many logits.
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
"""Half the width of a normal distribution's 90 % interval, in standard deviations."""
DAMAGE = "retained examples lost by then, as linearised"


class Calibration(NamedTuple):
    """log(measured) = intercept + slope log(predicted) + noise."""

    intercept: float
    slope: float
    spread: float
    """Standard deviation of the noise."""
    left_out: float
    """Share of runs that fell into the 90 % interval of a fit to other seeds (cross-validation)."""
    runs: int

    @classmethod
    def load(cls) -> Calibration:
        """The calibration that ships with the package."""
        path = Path(__file__).with_name("hardness.json")
        return cls(**json.loads(path.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Hardness(LogitDiagnostic):
    """Steps of descent and ascent until the model no longer knows half of the forget set."""

    version: ClassVar[int] = 2

    learning_rate: Positive = 2e-3
    """Planned step size."""
    ascent_weight: Share = 0.2
    """Weight of the ascent on the forget set; the descent on the retain set has 1 - ascent_weight."""

    def __call__(self, case: Case, seed: int) -> dict[str, Estimate]:
        """Calibrated steps, predicted steps, and damage to the retain set.

        The interval of the calibrated steps is for one run of the plan; that of the predicted ones for the choice of
        the sample; both 90 %.

        Raises:
            MissingError: The model predicts tokens.
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
        """The predicted steps; infinite if they exceed the steps that are followed, as in the calibration."""
        most = math.log(self.steps)
        if logs.value >= most:
            return Estimate(math.inf, math.nan, math.nan, logs.n, "steps", "reference")
        # Removing a sample's bias extrapolates; beyond the cap, where nothing was predicted, the result means nothing.
        high = math.inf if logs.high >= most else math.exp(logs.high)
        return Estimate(math.exp(logs.value), math.exp(min(logs.low, most)), high, logs.n, "steps", "reference")

    def _expected(self, logs: Estimate) -> Estimate:
        """The calibrated steps, with an interval for one run; infinite if the set is not forgotten within `steps`."""
        if logs.value >= math.log(self.steps):
            return Estimate(math.inf, math.nan, math.nan, logs.n, "steps", "reference")
        calibration = Calibration.load()
        centre = calibration.intercept + calibration.slope * logs.value
        sampling = calibration.slope * (logs.high - logs.low) / 2
        half = math.hypot(NINE_OF_TEN * calibration.spread, 0.0 if math.isnan(sampling) else sampling)
        low, value, high = (math.exp(end) for end in (centre - half, centre, centre + half))
        return Estimate(value, low, high, logs.n, "steps", "reference")

    def summary(self, estimates: Mapping[str, Estimate]) -> str:
        """How long the plan takes; leaves out the predicted damage, because measured damage did not follow it."""
        hard = estimates[HARDNESS]
        plan = f"neggrad_plus with sgd, alpha = {1 - self.ascent_weight:g}, learning_rate = {self.learning_rate:g}"
        if math.isinf(hard.value):
            more = "raise learning_rate or ascent_weight"
            return f"As {plan}: the forget set is not half forgotten within {self.steps} steps; {more}."
        return (
            f"As {plan}: about {hard.value:,.0f} steps until half of what is known of the forget set is gone; from "
            f"{hard.low:,.0f} to {hard.high:,.0f} in nine of ten runs like those of the calibration."
        )
