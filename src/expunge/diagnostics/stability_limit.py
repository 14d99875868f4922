"""How far the planned step can be taken: largest stable step sizes, and how fast the plan leaves the minimum.

The plan is descent on the retain set with ascent on the forget set, w <- w - step ((1 - a) g_r - a g_f) with
heavy-ball momentum and ascent weight a: `neggrad_plus` with optimizer = "sgd" and alpha = 1 - a; with a = 1 it is
`gradient_ascent`, with a = 0 `finetune`. Adam's steps are scaled weight by weight, and none of this is about them.

Linear stability (`numerics.stability`) assumes per-example gradients of zero at the trained weights, and takes each
example's Gauss-Newton matrix for its curvature, J^T (diag p - p p^T) J under cross-entropy. Where a net has more
weights than there are examples, times classes - 1, the ascent leaves at *every* step size: what can be limited is the
descent on the retain set, and what is informative of the ascent is its rate. Two tests each: of the mean, and of the
mean square, which adds the noise of batches. Rates begin to hold after about 1 / rate steps, when curvature has
overtaken the gradient that is left. How far that is from zero is said relative to labels drawn from the model's own
prediction: 0 is the assumption, at 1 the gradients are as long as those of such labels.

The linearised distance says when a minimum is left. That is neither forgetting nor deletion.

All are for the whole sets, from a sample and its halves (`_halves`), with the sets' own batch noise; directions with
less than `FLAT` of the sharpest one's curvature are left out, which makes slow rates a little smaller.

Cost: at most `epochs` passes over the training set; with 96 examples of ten classes about 3,500 gradients, three times
as many where no parameter has a product form, and up to half a minute of linear algebra.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from expunge.base.part import Count, Positive, Share
from expunge.core.case import Case
from expunge.core.generators import generator_of
from expunge.core.problem import Problem
from expunge.diagnostics._gram_diagnostic import GramDiagnostic
from expunge.diagnostics._halves import SampledSet, over_halves
from expunge.diagnostics._rows import curvature_gram, gradient_gram
from expunge.diagnostics._sample import Momentum, about
from expunge.diagnostics.coherence import one_by_one, parts_of
from expunge.evidence.estimate import Estimate
from expunge.numerics.linearised import Curvatures, Draw, Update, of_gram
from expunge.numerics.stability import growth_rate, growth_steps, mean_limit, mean_radius, mean_square_limit

RETAIN_MEAN = "largest stable step size on the retain set, on average"
RETAIN_SQUARE = "largest stable step size on the retain set, in mean square"
RATE_MEAN = "growth of the plan, on average"
RATE_SQUARE = "growth of the plan, in mean square"
RETAIN_GRADIENT = "gradient left on the retain set"
FORGET_GRADIENT = "gradient left on the forget set"

FLAT = 5e-3
"""Directions with less than this share of the largest curvature are left out."""


@dataclass(frozen=True)
class StabilityLimit(GramDiagnostic):
    """Largest stable step size of descent and ascent, and how fast the planned one leaves the minimum."""

    learning_rate: Positive = 2e-4
    """Planned step size."""
    ascent_weight: Share = 0.05
    """Weight of the ascent on the forget set; the descent on the retain set has what is left to 1."""
    momentum: Momentum = 0.9
    """Of the heavy ball, as that of the library's `sgd`."""
    batch_size: Count = 128
    """Retain examples per step, or all where there are fewer."""
    forget_batch_size: Count = 64
    """Forget examples per step, likewise."""
    retain: Count = 48
    """Retain examples looked at, fewer where the budget is short."""
    forget: Count = 48
    """Forget examples looked at, likewise."""

    def __call__(self, case: Case, seed: int) -> dict[str, Estimate]:
        """Step sizes, rates per step, and gradients as shares, with 90 % intervals for the choice of the examples.

        Raises:
            SpecError: No parameter of the model takes a gradient, or the budget affords no example.
            RunError: A loss is not finite.
        """
        generator = generator_of(seed, "stability_limit")
        # One column more for each example's own loss.
        rows, sample = self.looked_at(case, generator, more=1)
        with about(case):
            found, left = curvature_gram(sample, self.rows, generator), gradient_gram(sample).matrix
        own = found.matrix.double().diagonal().view(-1, rows).sum(1)
        split, parts = len(sample.retain), parts_of(sample)
        squares = left.double().diagonal()
        gradients = {
            what: _relative(squares[side], own[side], part, generator)
            for what, side, part in (
                (RETAIN_GRADIENT, slice(split), parts[0]),
                (FORGET_GRADIENT, slice(split, None), parts[1]),
            )
        }
        estimates = self._estimates(
            of_gram(found.matrix, split, rows=rows, tolerance=FLAT), case.problem, parts, generator
        )
        return {**estimates, **gradients, **one_by_one(sample, found.unsupported)}

    def update(self, problem: Problem) -> Update:
        """The plan on this problem."""
        sets = ((self.batch_size, problem.retain), (self.forget_batch_size, problem.forget))
        retain, forget = (Draw(len(ids), min(size, len(ids))) for size, ids in sets)
        return Update(self.learning_rate, self.ascent_weight, retain, forget, self.momentum)

    def _estimates(
        self, curvatures: Curvatures, problem: Problem, parts: list[SampledSet], generator: torch.Generator
    ) -> dict[str, Estimate]:
        plan = self.update(problem)
        descent = replace(plan, ascent_weight=0.0)
        limit = partial(over_halves, parts=parts[:1], generator=generator, unit="step size", inverse=True)
        rate = partial(over_halves, parts=parts, generator=generator, unit="per step")
        found = {}
        # Weighted by 1 - ascent_weight, the descent takes so much longer steps; with ascent_weight = 1 there is none.
        if self.ascent_weight < 1:
            share = 1 - self.ascent_weight
            for what, of in ((RETAIN_MEAN, mean_limit), (RETAIN_SQUARE, mean_square_limit)):
                found[what] = limit(_picked(curvatures, lambda c, of=of: share / of(c, descent)))  # type: ignore[misc]
        if self.ascent_weight > 0:
            found[RATE_MEAN] = rate(_picked(curvatures, lambda c: math.log(mean_radius(c, plan))))
            found[RATE_SQUARE] = rate(_picked(curvatures, lambda c: growth_rate(c, plan)))
        return found

    def summary(self, found: Mapping[str, Estimate]) -> str:
        """Which method this is, whether the retained part holds, how fast the rest leaves, and on what assumption."""
        text = f"As {self._method()}: "
        if RETAIN_SQUARE in found:
            text += self._held(found[RETAIN_SQUARE])
        if RATE_SQUARE in found:
            text += self._leaving(found[RATE_SQUARE])
        worst = max(found[RETAIN_GRADIENT].value, found[FORGET_GRADIENT].value)
        return text + (
            f"This linearises where gradients are zero; they are up to {worst:.2g} times as long as those of labels "
            "drawn from the model's own predictions, and the less it is the more can be trusted."
        )

    def _method(self) -> str:
        settings = f"learning_rate = {self.learning_rate:g}"
        if self.momentum != 0.9:
            settings += f" and momentum {self.momentum:g}, which is not that of the library"
        if self.ascent_weight == 0:
            return f"finetune with sgd, {settings}"
        if self.ascent_weight == 1:
            return f"gradient_ascent with sgd, {settings}"
        return f"neggrad_plus with sgd, alpha = {1 - self.ascent_weight:g}, {settings}"

    def _held(self, limit: Estimate) -> str:
        if self.learning_rate < limit.low:
            return f"descent on the retain set is stable up to a step size of {limit.value:.2g}. "
        if self.learning_rate > limit.high:
            return f"descent on the retain set is unstable above a step size of {limit.value:.2g}, expect damage. "
        return f"whether descent on the retain set is stable is undecided (limit {limit.value:.2g}). "

    def _leaving(self, rate: Estimate) -> str:
        if rate.high <= 0:
            return "The plan stays at the minimum. "
        if not rate.low > 0:
            return "Whether the plan leaves the minimum is undecided. "
        return f"The plan leaves: the distance grows tenfold in about {growth_steps(rate.value, 10):,.0f} steps. "


def _picked(curvatures: Curvatures, measure: Callable[[Curvatures], float]) -> Callable[[Sequence[Tensor]], float]:
    """A statistic of some of the retained and some of the forgotten examples; of all forgotten ones by default."""

    def statistic(places: Sequence[Tensor]) -> float:
        forget = torch.arange(len(curvatures.factors) - curvatures.retained) if len(places) == 1 else places[1]
        at = torch.cat([places[0], forget + curvatures.retained])
        return measure(Curvatures(curvatures.factors[at], len(places[0])))

    return statistic


def _relative(squares: Tensor, own: Tensor, part: SampledSet, generator: torch.Generator) -> Estimate:
    """Root of the mean squared gradient over that under the model's own labels."""

    def statistic(places: Sequence[Tensor]) -> float:
        return math.sqrt(float(squares[places[0]].sum() / own[places[0]].sum()))

    return over_halves(statistic, [part], generator, unit="share", better="lower", bounds=(0.0, math.inf))
