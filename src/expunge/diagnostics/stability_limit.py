"""Which step sizes are stable for the planned method, and how fast it leaves the minimum.

The plan is descent on the retain set with ascent on the forget set, w <- w - step ((1 - a) g_r - a g_f) with
heavy-ball momentum and ascent weight a: `neggrad_plus` with optimizer = "sgd" and alpha = 1 - a; with a = 1 it is
`gradient_ascent`, with a = 0 `finetune`. Adam scales its steps weight by weight; nothing here applies to it.

Linear stability (`numerics.stability`) assumes per-example gradients of zero at the trained weights. It takes each
example's Gauss-Newton matrix as its curvature, J^T (diag p - p p^T) J under cross-entropy. If a net has more weights
than examples times (classes - 1), the ascent leaves the minimum at *every* step size. So a limit exists only for the
descent on the retain set; the ascent is described by its rate. Each has two tests: of the mean, and of the mean square,
which adds the noise of batches. Rates are valid after about 1 / rate steps, when the curvature dominates the remaining
gradient. The size of that gradient is reported relative to labels drawn from the model's own prediction: 0 is the
assumption; at 1 the gradients are as long as those of such labels.

The linearised distance shows when a model leaves the minimum. That is neither forgetting nor deletion.

All values estimate the whole sets, from a sample and its halves (`_halves`), with the batch noise of the sets.
Directions with less than `FLAT` of the largest curvature are left out, which makes slow rates a little smaller.

Cost: at most `epochs` passes over the training set. With 96 examples of ten classes about 3,500 gradients, three times
as many if no parameter has a product form, and up to half a minute of linear algebra.
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
    """Weight of the ascent on the forget set; the descent on the retain set has 1 - ascent_weight."""
    momentum: Momentum = 0.9
    """Momentum of the heavy ball; the library's `sgd` has 0.9."""
    batch_size: Count = 128
    """Retain examples per step, or all if there are fewer."""
    forget_batch_size: Count = 64
    """Forget examples per step, or all if there are fewer."""
    retain: Count = 48
    """Retain examples to measure; fewer if the budget does not allow as many."""
    forget: Count = 48
    """Forget examples to measure; fewer if the budget does not allow as many."""

    def __call__(self, case: Case, seed: int) -> dict[str, Estimate]:
        """Step sizes, rates per step, and gradients as shares, with 90 % intervals over the choice of the examples.

        Raises:
            SpecError: No parameter of the model takes a gradient, or the budget affords no example.
            RunError: A loss is not finite.
        """
        generator = generator_of(seed, "stability_limit")
        # One more column for each example's own loss.
        rows, sample = self.looked_at(case, generator, more=1)
        with about(case):
            gram, left = curvature_gram(sample, self.rows, generator), gradient_gram(sample).matrix
        own = gram.matrix.double().diagonal().view(-1, rows).sum(1)
        split, parts = len(sample.retain), parts_of(sample)
        squares = left.double().diagonal()
        gradients = {
            name: _relative(squares[side], own[side], part, generator)
            for name, side, part in (
                (RETAIN_GRADIENT, slice(split), parts[0]),
                (FORGET_GRADIENT, slice(split, None), parts[1]),
            )
        }
        estimates = self._estimates(
            of_gram(gram.matrix, split, rows=rows, tolerance=FLAT), case.problem, parts, generator
        )
        return {**estimates, **gradients, **one_by_one(sample, gram.unsupported)}

    def update(self, problem: Problem) -> Update:
        """The planned step on this problem."""
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
        estimates = {}
        # The descent is weighted by 1 - ascent_weight, which raises its limit; with ascent_weight = 1 it is absent.
        if self.ascent_weight < 1:
            share = 1 - self.ascent_weight
            for name, of in ((RETAIN_MEAN, mean_limit), (RETAIN_SQUARE, mean_square_limit)):
                estimates[name] = limit(_picked(curvatures, lambda c, of=of: share / of(c, descent)))  # type: ignore[misc]
        if self.ascent_weight > 0:
            estimates[RATE_MEAN] = rate(_picked(curvatures, lambda c: math.log(mean_radius(c, plan))))
            estimates[RATE_SQUARE] = rate(_picked(curvatures, lambda c: growth_rate(c, plan)))
        return estimates

    def summary(self, estimates: Mapping[str, Estimate]) -> str:
        """The method, whether descent on the retain set is stable, how fast the plan leaves, and the assumption."""
        text = f"As {self._method()}: "
        if RETAIN_SQUARE in estimates:
            text += self._descent(estimates[RETAIN_SQUARE])
        if RATE_SQUARE in estimates:
            text += self._leaving(estimates[RATE_SQUARE])
        worst = max(estimates[RETAIN_GRADIENT].value, estimates[FORGET_GRADIENT].value)
        return text + (
            f"This assumes gradients of zero; they are up to {worst:.2g} times as long as those of labels drawn from "
            "the model's own predictions. The smaller this factor, the more you can trust the result."
        )

    def _method(self) -> str:
        settings = f"learning_rate = {self.learning_rate:g}"
        if self.momentum != 0.9:
            settings += f" and momentum {self.momentum:g} (the library's sgd has 0.9)"
        if self.ascent_weight == 0:
            return f"finetune with sgd, {settings}"
        if self.ascent_weight == 1:
            return f"gradient_ascent with sgd, {settings}"
        return f"neggrad_plus with sgd, alpha = {1 - self.ascent_weight:g}, {settings}"

    def _descent(self, limit: Estimate) -> str:
        if self.learning_rate < limit.low:
            return f"descent on the retain set is stable up to a step size of {limit.value:.2g}. "
        if self.learning_rate > limit.high:
            return f"descent on the retain set is unstable above a step size of {limit.value:.2g}; expect damage. "
        return f"it is undecided whether descent on the retain set is stable (limit {limit.value:.2g}). "

    def _leaving(self, rate: Estimate) -> str:
        if rate.high <= 0:
            return "The plan stays at the minimum. "
        if not rate.low > 0:
            return "It is undecided whether the plan leaves the minimum. "
        return f"The plan leaves it: the distance grows tenfold in about {growth_steps(rate.value, 10):,.0f} steps. "


def _picked(curvatures: Curvatures, measure: Callable[[Curvatures], float]) -> Callable[[Sequence[Tensor]], float]:
    """A statistic of the picked retained and forgotten examples; of all forgotten ones if only one set is picked."""

    def statistic(places: Sequence[Tensor]) -> float:
        forget = torch.arange(len(curvatures.factors) - curvatures.retained) if len(places) == 1 else places[1]
        at = torch.cat([places[0], forget + curvatures.retained])
        return measure(Curvatures(curvatures.factors[at], len(places[0])))

    return statistic


def _relative(squares: Tensor, own: Tensor, part: SampledSet, generator: torch.Generator) -> Estimate:
    """Root mean square of the gradients, divided by that under labels drawn from the model."""

    def statistic(places: Sequence[Tensor]) -> float:
        return math.sqrt(float(squares[places[0]].sum() / own[places[0]].sum()))

    return over_halves(statistic, [part], generator, unit="share", better="lower", bounds=(0.0, math.inf))
