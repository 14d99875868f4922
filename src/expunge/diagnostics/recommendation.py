"""What to do: a family of methods with the reason, and for descent and ascent a step size, a mix and a number of steps.

The family depends on what there is to forget. If nets that never saw the examples know them, a retrained model knows
them too: accuracy there will not fall, and the cheapest repair is enough. Examples known by heart have to be removed.
A method that only silences them leaves them for an attack to bring back: in the study `dormant` this happened with
random relabelling and circuit breakers, and no attack brought anything back after `noisy_distillation`, at a tenth of
retraining's gradients. That is evidence from small nets on one data set; run attacks on whatever you choose.

The plan is computed without taking a step. Its step size is a tenth of the largest at which descent on the retain set
is stable in mean square (`numerics.stability`): in trials, larger steps forgot sooner, and up to this size they cost
the retain set no more. Its mix is the smallest of `MIXES` that forgets half of what is known of the forget set within a
tenth of the steps, as predicted in function space (`numerics.function_space`): the cost of ascent grew with its weight,
not with its number of steps, and above a fifth it was high. One Gram matrix of logits serves both: an example's
curvature J^T (diag p - p p^T) J is made of its logits' gradients. The predicted number of steps is too low, several
times too low for examples known by heart: check what is left of the forget set, and continue.

Cost: that of `hardness`, plus a few predictions in function space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from expunge.base.part import Count
from expunge.core.case import Case
from expunge.core.data import Data
from expunge.core.generators import generator_of
from expunge.core.problem import Problem
from expunge.diagnostics._halves import over_halves
from expunge.diagnostics._logit_diagnostic import LogitDiagnostic, Sampled
from expunge.evidence.estimate import Estimate, over_examples
from expunge.numerics.linearised import Curvatures, Draw, Update, of_gram
from expunge.numerics.stability import mean_square_limit
from expunge.train.evaluation import known
from expunge.train.loop import batch_count

STEP, MIX = "step size to take", "weight of the ascent to take"
STEPS, DAMAGE = "steps to expect, as linearised", "retained examples lost by then, as linearised"
PASSES = "passes over the retain set that these steps are"
BY_HEART = "known by heart only, of what ships with the data"
LIMIT = "largest stable step size of descent on the retain set alone, in mean square"
KNOWN = {"forget": "known of the forget examples looked at", "retain": "known of the retained examples looked at"}

SHARE = 0.1
"""The plan takes this share of the largest stable step size, and must forget within this share of `steps`."""
MIXES = (0.05, 0.1, 0.2)
LEAST = 0.5
"""Share of each set that an original must know; below it, the plan means little."""
LITTLE = 0.1
"""Share known by heart below which there is hardly anything to forget."""
FLAT = 5e-3
"""Directions with less than this share of the largest curvature are left out, as in `stability_limit`."""


class RecommendedPlan(NamedTuple):
    """Settings of descent and ascent, with their predicted effect."""

    learning_rate: float
    ascent_weight: float
    steps: float
    damage: float


@dataclass(frozen=True)
class Recommendation(LogitDiagnostic):
    """A family of methods, and step size, weight of the ascent and steps of descent and ascent, with the reason."""

    version: ClassVar[int] = 2

    batch_size: Count = 128
    """Retain examples per step, or all if there are fewer; the batches' noise limits the step size."""

    def __call__(self, case: Case, seed: int) -> dict[str, Estimate]:
        """The plan with its predicted effect, and the step size limit. A plan is a choice, so it has no intervals.

        Raises:
            MissingError: The model predicts tokens.
            SpecError: No parameter of the model takes a gradient, or the budget affords no example.
            RunError: A loss is not finite.
        """
        generator = generator_of(seed, "recommendation")
        sampled = self.look(case, generator)
        limit = self.limit(sampled, case.problem, generator)
        plan = self.chosen(sampled, case.problem, limit.value)
        passes = math.ceil(plan.steps / batch_count(len(case.problem.retain), self.batch_size))
        values = {
            STEP: (plan.learning_rate, "step size"),
            MIX: (plan.ascent_weight, "share"),
            STEPS: (plan.steps, "steps"),
            PASSES: (float(passes), "passes"),
            DAMAGE: (plan.damage, "share"),
        }
        estimates = {
            name: Estimate(value, math.nan, math.nan, len(sampled.targets), unit, "reference")
            for name, (value, unit) in values.items()
        }
        return estimates | {LIMIT: limit} | _known(sampled) | _by_heart(case) | sampled.one_by_one

    def repeats(self, data: Data) -> bool:
        """No: the mean of several seeds' plans is not a plan of any of them."""
        return False

    def limit(self, sampled: Sampled, problem: Problem, generator: torch.Generator) -> Estimate:
        """The largest step size at which descent on the whole retain set is stable in mean square."""
        gram = curvature_of_logits(sampled.gram, sampled.logits)
        curvatures = of_gram(gram, sampled.retained, rows=sampled.logits.shape[1] - 1, tolerance=FLAT)
        size = len(problem.retain)
        whole = Draw(len(problem.forget), len(problem.forget))
        descent = Update(1.0, 0.0, Draw(size, min(self.batch_size, size)), whole, self.momentum)

        def inverse(places: Sequence[Tensor]) -> float:
            at = torch.cat([places[0], torch.tensor([sampled.retained])])
            return 1 / mean_square_limit(Curvatures(curvatures.factors[at], len(places[0])), descent)

        return over_halves(inverse, sampled.parts[:1], generator, unit="step size", inverse=True)

    def chosen(self, sampled: Sampled, problem: Problem, limit: float) -> RecommendedPlan:
        """The plan with the smallest mix that forgets soon enough; if none does, the plan with the largest mix."""
        # Without curvature every step size is stable, and the limit is infinite.
        rate = SHARE * limit if math.isfinite(limit) else SHARE
        for ascent_weight in MIXES:
            plan = RecommendedPlan(rate, ascent_weight, *self.predicted(sampled, problem, rate, ascent_weight))
            if plan.steps <= SHARE * self.steps:
                break
        return plan

    def summary(self, estimates: Mapping[str, Estimate]) -> str:
        """The family with its reason, then the plan; leaves out the predicted damage, which misled in trials."""
        return f"{_warning(estimates)}{self._family(estimates)} {self._plan(estimates)}"

    def proposal(self, estimates: Mapping[str, Estimate]) -> list[dict[str, Any]]:
        """The family's method; and descent and ascent with the plan, where it forgets soon enough."""
        cheap = BY_HEART in estimates and estimates[BY_HEART].high < LITTLE
        tables: list[dict[str, Any]] = [{"name": "finetune" if cheap else "noisy_distillation"}]
        step, ascent_weight, steps, passes = (estimates[name].value for name in (STEP, MIX, STEPS, PASSES))
        if steps <= SHARE * self.steps:
            plan = {"optimizer": "sgd", "learning_rate": float(f"{step:.2g}"), "alpha": round(1 - ascent_weight, 6)}
            tables.append({"name": "neggrad_plus", **plan, "epochs": max(round(passes), 1)})
        return tables

    def _family(self, estimates: Mapping[str, Estimate]) -> str:
        if BY_HEART not in estimates:
            return (
                "The data ship no C-scores, so it is unknown how much is known by heart. Assume that it is much: take "
                "noisy_distillation. In the study dormant, on small nets and one data set, no attack undid it. If the "
                "diagnostic memorization, which trains networks for C-scores, shows little, finetune is enough."
            )
        share = estimates[BY_HEART]
        if share.high < LITTLE:
            return (
                f"Only {100 * share.value:.0f} % is known by heart: a retrained model knows nearly all of it too. Take "
                "the cheapest method, finetune, and judge by membership; accuracy will show nothing."
            )
        return (
            f"{100 * share.value:.0f} % is known by heart, and has to be removed, not silenced: take "
            "noisy_distillation. In the study dormant, on small nets and one data set, no attack undid it."
        )

    def _plan(self, estimates: Mapping[str, Estimate]) -> str:
        step, ascent_weight, steps = (estimates[name].value for name in (STEP, MIX, STEPS))
        if steps > SHARE * self.steps:
            return (
                "With a mix that spares the retain set, descent and ascent do not forget soon: what the forget "
                "examples show is also known from others."
            )
        return (
            f"For descent and ascent: neggrad_plus with sgd, learning_rate = {step:.2g}, "
            f"alpha = {1 - ascent_weight:g}; the step size is a tenth of the largest that is stable on the retain set, "
            f"the ascent the weakest that forgets soon enough. A linear network would forget half in {steps:,.0f} "
            f"steps, {_passes(estimates[PASSES].value)}; check, and continue until half is forgotten."
        )


def _passes(count: float) -> str:
    return f"{count:,.0f} pass" + ("" if count == 1 else "es")


def curvature_of_logits(gram: Tensor, logits: Tensor) -> Tensor:
    """Inner products of the columns of G_i, with G_i G_i^T = J_i^T (diag p - p p^T) J_i, from those of the logits.

    Args:
        gram: Inner products of the logits' gradients, `[m c, m c]`, double precision.
        logits: `[m, c]`.

    Returns:
        `[m (c - 1), m (c - 1)]`.
    """
    count, classes = logits.shape
    p = logits.double().softmax(1)
    values, vectors = torch.linalg.eigh(torch.diag_embed(p) - p[:, :, None] * p[:, None])
    # The constant vector has the eigenvalue 0 and is left out.
    roots = (vectors * values.clamp(min=0).sqrt()[:, None]).mT[:, 1:]
    blocks = gram.view(count, classes, count, classes)
    products: Tensor = torch.einsum("ira,iajb,jsb->irjs", roots, blocks, roots)
    return products.reshape(count * (classes - 1), -1)


def _known(sampled: Sampled) -> dict[str, Estimate]:
    right = (sampled.logits.argmax(1) == sampled.targets).double().numpy()
    sides = {"forget": right[sampled.retained :], "retain": right[: sampled.retained]}
    return {KNOWN[name]: over_examples(side, "share", "reference") for name, side in sides.items()}


def _warning(estimates: Mapping[str, Estimate]) -> str:
    """A warning about an original that knows little, such as an untrained one; otherwise empty."""
    shares = {name: estimates[key].value for name, key in KNOWN.items()}
    if min(shares.values()) >= LEAST:
        return ""
    return (
        f"In the sample, the original knows only {100 * shares['forget']:.0f} % of the forget set and "
        f"{100 * shares['retain']:.0f} % of the retain set: if it knows little, this advice means little. "
    )


def _by_heart(case: Case) -> dict[str, Estimate]:
    problem, scores = case.problem, case.problem.data.cscore
    if scores is None:
        return {}
    by_heart = known(case.original, problem, problem.forget).double() - scores[problem.forget]
    return {BY_HEART: over_examples(by_heart.numpy(), "share", "reference")}
