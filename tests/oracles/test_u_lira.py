"""U-LiRA against Gaussians whose best attack is known in closed form, and with models that never saw an example."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from expunge.audits.u_lira import ULira, ranks, scaled_confidence
from expunge.base.errors import MissingError, SpecError
from expunge.core.case import Case
from expunge.core.decisions import Decisions

N = 4000
MANY = 400
"""Shadows of either kind where Gaussians should be known almost exactly."""


def drawn(mean: float, spread: float, models: int, seed: int) -> np.ndarray:
    """Confidences of models `[models, N]`: examples differ in their level, as easy and hard ones do."""
    level = np.random.default_rng(99).normal(0.0, 5.0, N)
    return level + np.random.default_rng(seed).normal(mean, spread, (models, N))


def area(mean: float, spread: float) -> float:
    """AUC of the likelihood ratio between N(mean, spread^2) and N(0, 1), by integrating over its own ROC curve."""
    grid = np.linspace(-40, 40, 200_001)
    inside, outside = stats.norm.pdf(grid, mean, spread), stats.norm.pdf(grid)
    order = np.argsort(stats.norm.logpdf(grid, mean, spread) - stats.norm.logpdf(grid), kind="stable")
    step = grid[1] - grid[0]
    return float(np.sum(inside[order] * np.cumsum(outside[order])) * step * step)


@pytest.mark.parametrize("mean", [0.5, 1.0, 2.0, -1.0])
def test_the_area_under_the_curve_is_that_of_two_gaussians(mean: float) -> None:
    asked = drawn(mean, 1.0, 1, 0)[0]
    found = ranks(asked, drawn(mean, 1.0, MANY, 1), drawn(0.0, 1.0, MANY, 2)).mean()
    # Equal variances: Phi(|d| / sqrt 2), whichever side members are on. Four standard errors of N uniform draws, which
    # spread the widest; the fitted means, off by 1 / sqrt(MANY), cost far less than that.
    expected = stats.norm.cdf(abs(mean) / math.sqrt(2))
    assert found == pytest.approx(expected, abs=4 * math.sqrt(1 / (12 * N)))
    assert area(mean, 1.0) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("mean", "spread"), [(0.0, 3.0), (0.0, 0.3), (1.0, 2.0)])
def test_unequal_variances_take_two_thresholds(mean: float, spread: float) -> None:
    asked = drawn(mean, spread, 1, 0)[0]
    found = ranks(asked, drawn(mean, spread, MANY, 1), drawn(0.0, 1.0, MANY, 2)).mean()
    assert found == pytest.approx(area(mean, spread), abs=4 * math.sqrt(1 / (12 * N)))


@pytest.mark.parametrize("pairs", [2, 3, 8])
@pytest.mark.parametrize(("mean", "spread"), [(0.0, 1.0), (0.0, 0.5), (3.0, 1.0)])
def test_a_retrained_model_has_one_half_however_few_the_shadows(pairs: int, mean: float, spread: float) -> None:
    """Also where the unlearned models are like the retrained ones, and the ratio follows nothing but noise."""
    found = ranks(drawn(0.0, 1.0, 1, 3)[0], drawn(mean, spread, pairs, 4), drawn(0.0, 1.0, pairs, 5)).mean()
    # Five standard errors of N draws in [0, 1], which vary by at most 1/4 (with two never-trained, by less).
    assert found == pytest.approx(0.5, abs=5 * math.sqrt(1 / (6 * N)))


def test_one_who_knows_is_called_one_with_four_shadows() -> None:
    assert ranks(drawn(8.0, 1.0, 1, 6)[0], drawn(8.0, 1.0, 2, 7), drawn(0.0, 1.0, 2, 8)).mean() > 0.97


def test_marked_by_being_worse() -> None:
    """Over-forgotten: far below what retrained models say, and so told apart."""
    assert ranks(drawn(-8.0, 1.0, 1, 6)[0], drawn(-8.0, 1.0, 4, 7), drawn(0.0, 1.0, 4, 8)).mean() > 0.97


def test_ranks_by_hand() -> None:
    knew, never = np.array([[3.0], [5.0]]), np.array([[0.0], [1.0], [4.5], [-1.0]])
    # With 4.5 itself, or 2: nearer to the mean 4 of those who knew than three of the four.
    assert ranks(np.array([4.5]), knew, never) == pytest.approx([(3 + 0.5) / 4])
    assert ranks(np.array([2.0]), knew, never) == pytest.approx([3 / 4])
    assert np.isnan(ranks(np.array([np.inf]), knew, never)).all()


def test_the_confidence_is_a_logit() -> None:
    logits, targets = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1])
    p = logits.softmax(1)[torch.arange(6), targets]
    found = scaled_confidence(Decisions(logits, targets, torch.arange(6)), 6)
    torch.testing.assert_close(found, p.log() - (1 - p).log(), rtol=1e-10, atol=1e-10)
    # Far beyond where 1 - p is 0 in any precision.
    sure = scaled_confidence(Decisions(torch.tensor([[900.0, 0.0]]), torch.tensor([0]), torch.arange(1)), 1)
    assert sure.tolist() == [900.0]


@pytest.mark.parametrize("shadows", [2, 5])
def test_the_number_of_shadows(shadows: int) -> None:
    with pytest.raises(SpecError, match="shadows"):
        ULira(shadows=shadows)


def test_without_shadows_it_says_so() -> None:
    with pytest.raises(MissingError, match="no shadow models"):
        ULira()(torch.nn.Identity(), Case(0, None, torch.nn.Identity()), 0)  # type: ignore[arg-type]
