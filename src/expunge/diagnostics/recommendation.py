"""What to do: a family of methods with the reason, and for descent and ascent a step size, a mix and a number of steps.

The family follows from what there is to forget. Examples that nets know which never saw them are known by a retrained
model too: accuracy has nothing to lose there, and the cheapest repair will do. Examples known by heart have to be taken
out, and what only silences them comes back: in the study `dormant` random relabelling and circuit breakers did, and
`noisy_distillation` was the one that no attack woke at a tenth of retraining's gradients. That is evidence from small
nets on one data set; attack whatever you choose.

The plan is found without a step being taken. Its step size is a tenth of the largest that descent on the retain set
bears in mean square (`numerics.stability`): in trials larger ones forgot in fewer steps and up to there cost the retain
set no more. Its mix is the smallest of `MIXES` with which half of what is known of the forget set is gone within a
tenth of the steps, as followed in function space (`numerics.function_space`): what ascent costs grew with its weight,
not with the steps that it took, and beyond a fifth it was expensive. One Gram matrix of logits serves both: an
example's curvature J^T (diag p - p p^T) J is made of its logits' gradients. The predicted number of steps is too low,
several times for examples known by heart: look at what is left of the forget set, and go on.

Cost: that of `hardness`, and a few courses in function space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

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
"""Of the largest stable step size, and of the steps that may be taken those within which a plan must be predicted."""
MIXES = (0.05, 0.1, 0.2)
LEAST = 0.5
"""Share of either set that an original must know for a plan to mean much."""
LITTLE = 0.1
"""Share known by heart below which there is hardly anything to forget."""
FLAT = 5e-3
"""Directions with less than this share of the largest curvature are left out, as in `stability_limit`."""


class RecommendedPlan(NamedTuple):
    """A setting of descent and ascent, with what it is predicted to do."""

    learning_rate: float
    ascent_weight: float
    steps: float
    damage: float


@dataclass(frozen=True)
class Recommendation(LogitDiagnostic):
    """A family of methods, and step size, weight of the ascent and steps of descent and ascent, with the reason."""

    version: ClassVar[int] = 2

    batch_size: Count = 128
    """Retain examples per step, or all where there are fewer; their noise bounds the step size."""

    def __call__(self, case: Case, seed: int) -> dict[str, Estimate]:
        """The plan and what it is predicted to do, a choice and so without intervals, and the limit that bounds it.

        Raises:
            MissingError: The model answers with tokens.
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
        found = {
            what: Estimate(value, math.nan, math.nan, len(sampled.targets), unit, "reference")
            for what, (value, unit) in values.items()
        }
        return found | {LIMIT: limit} | _known(sampled) | _by_heart(case) | sampled.one_by_one

    def repeats(self, data: Data) -> bool:
        """No: a plan that is the mean of several seeds' plans is none of them."""
        return False

    def limit(self, sampled: Sampled, problem: Problem, generator: torch.Generator) -> Estimate:
        """The largest step size at which descent on the retain set stays, in mean square, for the whole set."""
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
        """The plan with the smallest mix that forgets soon enough; where none does, that with the largest."""
        # Without any curvature no step size is too large, and the loss has nothing to say.
        rate = SHARE * limit if math.isfinite(limit) else SHARE
        for ascent_weight in MIXES:
            plan = RecommendedPlan(rate, ascent_weight, *self.predicted(sampled, problem, rate, ascent_weight))
            if plan.steps <= SHARE * self.steps:
                break
        return plan

    def summary(self, found: Mapping[str, Estimate]) -> str:
        """The family with its reason, then the plan; the predicted damage, which misled, is left to the estimates."""
        return f"{_warning(found)}{self._family(found)} {self._plan(found)}"

    def _family(self, found: Mapping[str, Estimate]) -> str:
        if BY_HEART not in found:
            return (
                "The data ship no C-scores, which would tell how much is known by heart. Suppose that it is much: "
                "take noisy_distillation, which no attack woke in the study dormant, on small nets and one data set. "
                "Where memorization, which trains networks for C-scores, finds little, finetune will do."
            )
        share = found[BY_HEART]
        if share.high < LITTLE:
            return (
                f"Only {100 * share.value:.0f} % is known by heart: a retrained model knows nearly all of it too. Take "
                "the cheapest, finetune, and judge by membership; accuracy will show nothing."
            )
        return (
            f"{100 * share.value:.0f} % is known by heart, and has to be taken out, not silenced: take "
            "noisy_distillation, which no attack woke in the study dormant, on small nets and one data set."
        )

    def _plan(self, found: Mapping[str, Estimate]) -> str:
        step, ascent_weight, steps = (found[what].value for what in (STEP, MIX, STEPS))
        if steps > SHARE * self.steps:
            return (
                "Descent and ascent do not get there soon with a mix that spares the retain set: others know what "
                "these examples know."
            )
        return (
            f"For descent and ascent: neggrad_plus with sgd, learning_rate = {step:.2g}, "
            f"alpha = {1 - ascent_weight:g}; the step size is a tenth of the largest that is stable on the retain set, "
            f"the ascent the weakest that gets there. In a linear network half would be gone in {steps:,.0f} steps, "
            f"{_passes(found[PASSES].value)}; look, and go on until it is."
        )


def _passes(count: float) -> str:
    return f"{count:,.0f} pass" + ("" if count == 1 else "es")


def curvature_of_logits(gram: Tensor, logits: Tensor) -> Tensor:
    """Inner products of the columns of G_i, G_i G_i^T = J_i^T (diag p - p p^T) J_i, from those of the logits.

    Args:
        gram: `[m c, m c]`, double precision.
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
    found: Tensor = torch.einsum("ira,iajb,jsb->irjs", roots, blocks, roots)
    return found.reshape(count * (classes - 1), -1)


def _known(sampled: Sampled) -> dict[str, Estimate]:
    has = (sampled.logits.argmax(1) == sampled.targets).double().numpy()
    sides = {"forget": has[sampled.retained :], "retain": has[: sampled.retained]}
    return {KNOWN[name]: over_examples(side, "share", "reference") for name, side in sides.items()}


def _warning(found: Mapping[str, Estimate]) -> str:
    """Of an original that knows little, such as one that was not trained."""
    shares = {name: found[what].value for name, what in KNOWN.items()}
    if min(shares.values()) >= LEAST:
        return ""
    return (
        f"Of what was looked at, the original knows only {100 * shares['forget']:.0f} % of the forget set and "
        f"{100 * shares['retain']:.0f} % of the retain set: where it knows little, this advice means little. "
    )


def _by_heart(case: Case) -> dict[str, Estimate]:
    problem, scores = case.problem, case.problem.data.cscore
    if scores is None:
        return {}
    has = known(case.original, problem, problem.forget).double() - scores[problem.forget]
    return {BY_HEART: over_examples(has.numpy(), "share", "reference")}
