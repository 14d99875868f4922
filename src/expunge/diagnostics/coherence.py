"""Whether examples pull at the same weights: within retain set, within forget set, and between them.

With the Gauss-Newton matrix H_i of each example's loss, S_ij = sqrt(tr(H_i H_j)), and coherence is lambda_1(S) / max_i
S_ii, here divided by the number of examples: 1 / n where no two share a direction, 1 where all are the same. Dexter et
al. (2024) have lambda_1(H_i) in the place of S_ii, which is the same for H_i of rank one; of others they make more than
1 of examples that are all the same. Between sets, lambda_1 becomes the spectral norm, and 0 is the least. High
coherence between the sets means that ascent on what is to go is answered by descent on what stays (Chang and Khanna,
2602.02986). It is no measure of how hard a forget set is: how fast a minimum is left depends on the step size too
(`stability_limit`).

Effective rank is (tr H)^2 / tr(H^2) of a set's mean H: directions, were it equally curved in all.

All are for the whole sets: bias and error of the sample are taken from its halves (`_halves`). With more classes than
`rows` and for language models labels are drawn, which makes coherence within a set a little too low (`_rows`).

Cost: at most `epochs` passes over the training set; with 128 examples of ten classes about 6,000 gradients, three times
as many where no parameter has a product form.
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

WITHIN_RETAIN = "coherence within the retain set"
WITHIN_FORGET = "coherence within the forget set"
BETWEEN = "coherence between retain and forget set"
RETAIN_RANK = "effective rank of the retain set"
FORGET_RANK = "effective rank of the forget set"
ONE_BY_ONE = "weights whose gradients went one by one, in"


@dataclass(frozen=True)
class Coherence(GramDiagnostic):
    """How far examples share the weights that they depend on, within and between both sets."""

    cite: ClassVar[str] = "dexter2024precise"

    def __call__(self, case: Case, seed: int) -> dict[str, Estimate]:
        """Shares and numbers of directions, with 90 % intervals for the choice of the examples.

        Raises:
            SpecError: No parameter of the model takes a gradient, or the budget affords no example.
            RunError: A loss is not finite.
        """
        generator = generator_of(seed, "coherence")
        rows, sample = self.looked_at(case, generator)
        with about(case):
            found = curvature_gram(sample, self.rows, generator)
        shared = _Shared.of(found.matrix, rows, len(sample.retain))
        parts = parts_of(sample)
        return {
            WITHIN_RETAIN: _share(shared.within(0), parts[:1], generator),
            WITHIN_FORGET: _share(shared.within(1), parts[1:], generator),
            BETWEEN: _share(shared.between, parts, generator),
            RETAIN_RANK: _rank(shared.inverse_rank(0), parts[:1], generator),
            FORGET_RANK: _rank(shared.inverse_rank(1), parts[1:], generator),
            **one_by_one(sample, found.unsupported),
        }

    def summary(self, found: Mapping[str, Estimate]) -> str:
        """How much the sets share, beside what each has in common within itself."""
        retain, forget, between = (found[what] for what in (WITHIN_RETAIN, WITHIN_FORGET, BETWEEN))
        text = (
            f"Of what could be shared, examples share {_percent(forget)} within the forget set, {_percent(retain)} "
            f"within the retain set and {_percent(between)} between the two; the forget set bends about "
            f"{found[FORGET_RANK].value:.3g} directions, the retain set {found[RETAIN_RANK].value:.3g}."
        )
        inside = math.sqrt(max(retain.value * forget.value, 0.0))
        if any(math.isnan(one.low) for one in (retain, forget, between)):
            return text + " These are of too few examples to say how sure they are; raise epochs, or lower rows."
        if between.low > 0.5 * inside:
            return (
                f"{text} What is to go shares weights with what stays much as each set does within itself; whether "
                "that predicts damage or resistance has not been measured here."
            )
        if between.high < 0.5 * inside:
            return text + " What is to go sits largely in weights of its own."
        return text


@dataclass(frozen=True)
class _Shared:
    """S, trace of each H_i, and how many examples are from the retain set."""

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
        found = sigma.coherence_between(block, sizes[ours], sizes[theirs])
        return found / math.sqrt(len(ours) * len(theirs))

    def inverse_rank(self, side: int) -> Callable[[Sequence[Tensor]], float]:
        def statistic(places: Sequence[Tensor]) -> float:
            at = places[0] + side * self.retained
            return 1 / sigma.effective_rank(self.similarity[at][:, at], self.traces[at])

        return statistic


def parts_of(sample: Sample) -> list[SampledSet]:
    """Retain and forget set, as what their samples are from."""
    problem = sample.problem
    sets = ((sample.retain, problem.retain), (sample.forget, problem.forget))
    return [SampledSet(problem.data.group_of(ids), len(whole)) for ids, whole in sets]


def one_by_one(sample: Sample, names: Sequence[str]) -> dict[str, Estimate]:
    """What had no product form, named, as a share of the weights; nothing where all had one."""
    if not names:
        return {}
    sizes = {name: parameter.numel() for name, parameter in sample.model.named_parameters() if parameter.requires_grad}
    share = sum(sizes[name] for name in names) / sum(sizes.values())
    # A number that is counted has no interval.
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
