"""Whether examples depend on the same weights: within the retain set, within the forget set, and between them.

Let H_i be the Gauss-Newton matrix of an example's loss, and S_ij = sqrt(tr(H_i H_j)). Coherence is lambda_1(S) / max_i
S_ii, here divided by the number of examples n: 1 / n if no two examples share a direction, 1 if all are equal. Dexter
et al. (2024) divide by lambda_1(H_i), not by S_ii. Both are the same for H_i of rank one; for a higher rank their
coherence of equal examples exceeds 1. Between sets, the spectral norm replaces lambda_1, and the smallest value is 0.
High coherence between the sets means that descent on the retain set counteracts ascent on the forget set (Chang and
Khanna, 2602.02986). It does not measure how hard a forget set is: how fast a model leaves a minimum also depends on the
step size (`stability_limit`).

Effective rank is (tr H)^2 / tr(H^2) of a set's mean H: the number of directions, if H were equally curved in all.

All values estimate the whole sets: bias and error of the sample come from its halves (`_halves`). With more classes
than `rows`, and for language models, labels are drawn, which makes coherence within a set a little too low (`_rows`).

Cost: at most `epochs` passes over the training set. With 128 examples of ten classes about 6,000 gradients; three times
as many if no parameter has a product form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from expunge.core.case import Case
from expunge.core.generators import generator_of
from expunge.diagnostics._gram_diagnostic import GramDiagnostic
from expunge.diagnostics._halves import SampledSet, over_halves
from expunge.diagnostics._rows import curvature_gram
from expunge.diagnostics._sample import Sample, about
from expunge.evidence.estimate import Estimate
from expunge.numerics import coherence as sigma
from expunge.numerics.real import real_size

WITHIN_RETAIN = "coherence within the retain set"
WITHIN_FORGET = "coherence within the forget set"
BETWEEN = "coherence between retain and forget set"
RETAIN_RANK = "effective rank of the retain set"
FORGET_RANK = "effective rank of the forget set"
ONE_BY_ONE = "weights whose gradients went one by one, in"


@dataclass(frozen=True)
class Coherence(GramDiagnostic):
    """How strongly examples depend on the same weights, within each set and between both."""

    cite: ClassVar[str] = "dexter2024precise"

    def __call__(self, case: Case, seed: int) -> dict[str, Estimate]:
        """Shares and numbers of directions, with 90 % intervals over the choice of the examples.

        Raises:
            SpecError: No parameter of the model takes a gradient, or the budget affords no example.
            RunError: A loss is not finite.
        """
        generator = generator_of(seed, "coherence")
        rows, sample = self.looked_at(case, generator)
        with about(case):
            gram = curvature_gram(sample, self.rows, generator)
        shared = _Shared.of(gram.matrix, rows, len(sample.retain))
        parts = parts_of(sample)
        return {
            WITHIN_RETAIN: _share(shared.within(0), parts[:1], generator),
            WITHIN_FORGET: _share(shared.within(1), parts[1:], generator),
            BETWEEN: _share(shared.between, parts, generator),
            RETAIN_RANK: _rank(shared.inverse_rank(0), parts[:1], generator),
            FORGET_RANK: _rank(shared.inverse_rank(1), parts[1:], generator),
            **one_by_one(sample, gram.unsupported),
        }

    def summary(self, estimates: Mapping[str, Estimate]) -> str:
        """How much the two sets share, compared with what each shares within itself."""
        retain, forget, between = (estimates[name] for name in (WITHIN_RETAIN, WITHIN_FORGET, BETWEEN))
        text = (
            f"Of what could be shared, examples share {_percent(forget)} within the forget set, {_percent(retain)} "
            f"within the retain set and {_percent(between)} between the two; the loss is curved in about "
            f"{estimates[FORGET_RANK].value:.3g} directions on the forget set, in "
            f"{estimates[RETAIN_RANK].value:.3g} on the retain set."
        )
        inside = math.sqrt(max(retain.value * forget.value, 0.0))
        if any(math.isnan(estimate.low) for estimate in (retain, forget, between)):
            return text + " The examples are too few for intervals; raise epochs, or lower rows."
        if between.low > 0.5 * inside:
            return (
                f"{text} The forget set shares weights with the retain set much as each set does within itself; "
                "whether that predicts damage or resistance has not been measured here."
            )
        if between.high < 0.5 * inside:
            return text + " The forget set depends largely on weights of its own."
        return text


@dataclass(frozen=True)
class _Shared:
    """The matrix S, the trace of each H_i, and the number of examples from the retain set."""

    similarity: Tensor
    traces: Tensor
    retained: int

    @classmethod
    def of(cls, gram: Tensor, rows: int, retained: int) -> _Shared:
        traces = gram.double().diagonal().view(-1, rows).sum(1)
        return cls(sigma.similarities(gram, rows=rows), traces, retained)

    def within(self, side: int) -> Callable[[Sequence[Tensor]], float]:
        def statistic(places: Sequence[Tensor]) -> float:
            at = places[0] + side * self.retained
            block = self.similarity[at][:, at]
            return sigma.coherence(block, block.diagonal()) / len(at)

        return statistic

    def between(self, places: Sequence[Tensor]) -> float:
        ours, theirs = places[0], places[1] + self.retained
        block = self.similarity[ours][:, theirs]
        sizes = self.similarity.diagonal()
        coherence = sigma.coherence_between(block, sizes[ours], sizes[theirs])
        return coherence / math.sqrt(len(ours) * len(theirs))

    def inverse_rank(self, side: int) -> Callable[[Sequence[Tensor]], float]:
        def statistic(places: Sequence[Tensor]) -> float:
            at = places[0] + side * self.retained
            return 1 / sigma.effective_rank(self.similarity[at][:, at], self.traces[at])

        return statistic


def parts_of(sample: Sample) -> list[SampledSet]:
    """The sampled retain set and the sampled forget set."""
    problem = sample.problem
    sets = ((sample.retain, problem.retain), (sample.forget, problem.forget))
    return [SampledSet(problem.data.group_of(ids), len(whole)) for ids, whole in sets]


def one_by_one(sample: Sample, names: Sequence[str]) -> dict[str, Estimate]:
    """The parameters without a product form, named, as a share of the weights; empty if all have one."""
    if not names:
        return {}
    sizes = {name: real_size(p) for name, p in sample.model.named_parameters() if p.requires_grad}
    share = sum(sizes[name] for name in names) / sum(sizes.values())
    # An exact count has no interval.
    what = f"{ONE_BY_ONE} {', '.join(names)}"
    return {what: Estimate(share, math.nan, math.nan, len(names), "share", "lower")}


def _share(
    statistic: Callable[[Sequence[Tensor]], float], parts: list[SampledSet], generator: torch.Generator
) -> Estimate:
    return over_halves(statistic, parts, generator, unit="share", bounds=(0.0, 1.0))


def _rank(
    statistic: Callable[[Sequence[Tensor]], float], parts: list[SampledSet], generator: torch.Generator
) -> Estimate:
    return over_halves(statistic, parts, generator, unit="directions", bounds=(1.0, math.inf), inverse=True)


def _percent(share: Estimate) -> str:
    return f"{100 * share.value:.0f} %"
