"""How much of the forget set is known by heart only: C-scores predict what retrained models will know of it.

An example's C-score is the rate at which nets that did not see it get it right (Jiang et al., 2002.03206). The mean
over the forget set predicts the accuracy of a retrained model there. So original minus C-score predicts the range, all
that there is to forget, before anything is retrained. A random forget set has a range close to 0. If the forget set was
*chosen* by low C-scores from few nets, the choice also selected their noise, and the predicted accuracy is too low.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch

from expunge.base.errors import MissingError
from expunge.base.part import Count
from expunge.base.seeds import derive
from expunge.core.case import Case
from expunge.core.contracts import Diagnostic
from expunge.core.data import Data
from expunge.evidence.estimate import Estimate, over_examples
from expunge.train.cscore import cscores
from expunge.train.evaluation import known

KNOWS = "forget examples that the original knows"
GENERAL = "C-score of the forget set (what a retrained model should know)"
RANGE = "range to expect (what there is to forget)"
SELDOM = "forget examples that fewer than a quarter of nets get right"
MOSTLY = "forget examples that more than three quarters of nets get right"


@dataclass(frozen=True)
class Memorization(Diagnostic):
    """C-scores of forget and retain set, compared with what the original knows."""

    cite: ClassVar[str] = "jiang2021characterizing"

    version: ClassVar[int] = 2

    predicts: ClassVar[Mapping[str, str]] = MappingProxyType({KNOWS: "original", GENERAL: "reference", RANGE: "range"})

    nets: Count = 12
    """Nets to compute C-scores from, if the data ship none."""

    def __call__(self, case: Case, seed: int) -> dict[str, Estimate]:
        """Means over examples with their 90 % intervals, as shares.

        Raises:
            MissingError: The data ship no C-scores and there is no recipe to compute them with.
        """
        problem, data = case.problem, case.problem.data
        scores = data.cscore
        if scores is None:
            if case.recipe is None:
                raise MissingError("C-scores take a recipe", where="memorization", remedy="pass recipe=")
            scores = torch.full((len(data),), torch.nan, dtype=torch.float64)
            scores[data.train] = cscores(case.recipe, data, self.nets, derive(seed, "cscore"))
        knows = known(case.original, problem, problem.forget).double()
        forget, retain = scores[problem.forget], scores[problem.retain]
        return {
            KNOWS: over_examples(knows.numpy(), "share", "reference"),
            GENERAL: over_examples(forget.numpy(), "share", "reference"),
            RANGE: over_examples((knows - forget).numpy(), "share", "reference"),
            "C-score of the retain set": over_examples(retain.numpy(), "share", "reference"),
            # They show what the mean consists of: average examples, or easy and hopeless ones.
            SELDOM: over_examples((forget < 0.25).double().numpy(), "share", "reference"),
            MOSTLY: over_examples((forget > 0.75).double().numpy(), "share", "reference"),
        }

    def repeats(self, data: Data) -> bool:
        """Yes if the data ship C-scores. Computing them is expensive, and they belong to the data, not to a seed."""
        return data.cscore is not None

    def summary(self, estimates: Mapping[str, Estimate]) -> str:
        """How much of the forget set is known by heart only, and whether its interval excludes 0."""
        knows, general, expected = (estimates[name] for name in (KNOWS, GENERAL, RANGE))
        text = (
            f"The original knows {100 * knows.value:.1f} % of the forget set; nets that never saw these examples get "
            f"{100 * general.value:.1f} % of them right. The difference, {100 * expected.value:.1f} points, is known "
            "by heart only: that is what there is to forget."
        )
        blind = " Its interval reaches 0, so hardly any verdict will have power."
        return text if expected.low > 0 else text + blind
