"""Columns of Gauss-Newton matrices against whole Jacobians, and what halves of a sample say of the set."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from _dense import curvatures, gradient
from _spectra import seeded
from _toy import classes, gpt, net, tokens
from torch import Tensor

from expunge.core.problem import Problem
from expunge.diagnostics import _halves
from expunge.diagnostics._halves import SampledSet, over_halves
from expunge.diagnostics._rows import curvature_gram, gradient_gram, rows_of
from expunge.diagnostics._sample import Sample
from expunge.numerics.coherence import similarities

EXACT = {"rtol": 1e-9, "atol": 1e-11}


def sample_of(problem: Problem) -> Sample:
    return Sample(
        (net() if problem.data.has_classes else gpt()).eval(), problem, problem.retain[:3], problem.forget[:2]
    )


def test_columns_of_a_classifier_are_exact():
    sample = sample_of(classes())
    assert rows_of(sample.problem, 9) == 2
    found = curvature_gram(sample, 9, seeded()).matrix
    dense = curvatures(sample.model, sample.problem, sample.ids)
    expected = torch.einsum("iab,jab->ij", dense, dense)
    torch.testing.assert_close(similarities(found, rows=2).square(), expected, **EXACT)
    torch.testing.assert_close(found.diagonal().view(-1, 2).sum(1), dense.diagonal(dim1=1, dim2=2).sum(1), **EXACT)


@pytest.mark.parametrize("problem", [classes(), tokens()], ids=["classes", "tokens"])
def test_drawn_columns_are_right_on_average(problem: Problem):
    """Inner products of different examples and traces, over 40 draws of 16 labels; five standard errors."""
    sample = sample_of(problem)
    rows = 16 if problem.data.has_tokens else 1
    assert rows_of(problem, rows) == rows
    dense = curvatures(sample.model, problem, sample.ids)
    grams = [curvature_gram(sample, rows, seeded(s)).matrix for s in range(40 * 16 // rows)]
    squares = torch.stack([similarities(g, rows=rows).square() for g in grams])
    traces = torch.stack([g.diagonal().view(-1, rows).sum(1) for g in grams])
    apart = ~torch.eye(5, dtype=torch.bool)
    for found, exact in ((squares[:, apart], torch.einsum("iab,jab->ij", dense, dense)[apart]),
                         (traces, dense.diagonal(dim1=1, dim2=2).sum(1))):  # fmt: skip
        error = found.std(0) / len(found) ** 0.5
        assert ((found.mean(0) - exact).abs() < 5 * error).all()
        assert (error < 0.2 * exact).all()


@pytest.mark.parametrize("problem", [classes(), tokens()], ids=["classes", "tokens"])
def test_gradients_are_sums_over_roots_of_decisions(problem: Problem):
    sample = sample_of(problem)
    count = 1 if problem.data.has_classes else 5
    slopes = torch.stack([gradient(sample.model, problem, int(place)) for place in sample.ids]) * count**0.5
    torch.testing.assert_close(gradient_gram(sample).matrix, slopes @ slopes.T, **EXACT)


def part(count: int, population: int) -> SampledSet:
    return SampledSet(torch.arange(count), population)


def test_what_shrinks_with_the_sample_is_carried_over_exactly():
    """1 / m by itself, as the largest eigenvalue of the mean of orthogonal matrices; and nothing of what does not."""
    for count in (8, 9):
        found = over_halves(lambda at: 3 + 5 / len(at[0]), [part(count, 100)], seeded(), unit="")
        assert (found.value, found.low, found.high) == pytest.approx((3.05, 3.05, 3.05))
    both = over_halves(lambda at: 2 / len(at[0]) + 3 / len(at[1]), [part(8, 100), part(12, 50)], seeded(), unit="")
    assert both.value == pytest.approx(2 / 100 + 3 / 50)
    inverse = over_halves(lambda at: 5 / len(at[0]), [part(8, 100)], seeded(), unit="", inverse=True)
    assert inverse.value == pytest.approx(20)


def test_the_error_of_a_mean_is_the_textbooks(monkeypatch: pytest.MonkeyPatch):
    """s / sqrt(m) with the correction for a finite set; 4,000 halves leave 2 % of error in it."""
    monkeypatch.setattr(_halves, "HALVES", 4000)
    values = torch.randn(40, generator=seeded()).double()
    found = over_halves(lambda at: float(values[at[0]].mean()), [part(40, 100)], seeded(1), unit="")
    expected = 1.6848751 * float(values.std()) / 40**0.5 * (1 - 40 / 100) ** 0.5  # Student's t, 39 degrees of freedom
    assert found.half_width == pytest.approx(expected, rel=0.05)
    assert found.value == pytest.approx(float(values.mean()), abs=0.05 * expected)


def test_the_whole_set_has_no_error():
    found = over_halves(lambda at: 1 / len(at[0]), [part(7, 7)], seeded(), unit="")
    assert (found.value, found.low, found.high, found.n) == (1 / 7, 1 / 7, 1 / 7, 7)
    few = over_halves(lambda at: 1 / len(at[0]), [part(2, 2)], seeded(), unit="")
    assert (few.low, few.high) == (0.5, 0.5)


def test_groups_are_never_cut():
    groups = torch.tensor([0, 0, 0, 1, 2, 2, 3, 4])
    seen: list[Tensor] = []

    def statistic(at: Sequence[Tensor]) -> float:
        seen.append(at[0])
        return float(len(at[0]))

    found = over_halves(statistic, [SampledSet(groups, 100)], seeded(), unit="")
    assert found.n == 5 and len(seen) == 1 + _halves.HALVES
    for at in seen[1:]:
        inside = groups[at].unique()
        assert len(inside) == 2 and len(at) == int(torch.isin(groups, inside).sum())


def test_too_few_to_be_halved_have_no_interval():
    found = over_halves(lambda at: 1.0, [part(3, 100)], seeded(), unit="")
    assert found.value == 1 and math.isnan(found.low) and math.isnan(found.high)


def test_values_stay_within_their_bounds():
    values = torch.tensor([0.0, 0.0, 0.0, 1.0] * 3)
    found = over_halves(lambda at: float(values[at[0]].mean()), [part(12, 1000)], seeded(), unit="", bounds=(0.2, 0.3))
    assert found.low == 0.2 and found.high == 0.3
    below = over_halves(lambda at: -1.0 + len(at[0]) / 50, [part(12, 1000)], seeded(), unit="", inverse=True)
    assert below.value == below.high == math.inf
