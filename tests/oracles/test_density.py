"""Stochastic Lanczos quadrature against the quadratic forms, moments and densities of matrices that are known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from _spectra import Counted, seeded, with_spectrum
from torch import Tensor

from expunge.base.errors import SpecError
from expunge.numerics.density import Density, density

VALUES = torch.cat([torch.linspace(-1, 1, 45), torch.tensor([3.0, 3.0, 5.0, 8.0, 8.0])]).double()


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_each_probe_is_exact_up_to_twice_its_steps(steps: int):
    """v^T A^k v / v^T v, with the probes drawn here as they are there; one power further it is not exact."""
    matrix, generator = with_spectrum(VALUES), seeded()
    found = density(Counted(matrix), matrix[0], seeded(), probes=3, steps=steps)
    vectors = [torch.randn(50, generator=generator, dtype=torch.float64) for _ in range(3)]
    for k in range(2 * steps + 1):
        exact = torch.stack([v @ torch.linalg.matrix_power(matrix, k) @ v / (v @ v) for v in vectors])
        gauss = (found.weights * found.nodes**k).sum(1)
        if k < 2 * steps:
            torch.testing.assert_close(gauss, exact, rtol=1e-9, atol=1e-9)
        else:
            assert ((gauss - exact).abs() > 1e-8 * exact.abs()).all()


def test_moments_are_within_their_error():
    """60 seeds, four powers: a standard error covers about 68 %, twice it about 95 %."""
    matrix, scores = with_spectrum(VALUES), []
    for seed in range(60):
        found = density(Counted(matrix), matrix[0], seeded(seed), probes=12, steps=5)
        for power in (1, 2, 3, 4):
            mean, error = found.moment(power)
            scores.append((mean - float((VALUES**power).mean())) / error)
    inside = [sum(abs(s) < width for s in scores) / len(scores) for width in (1, 2)]
    # Four powers of one seed are correlated and 12 probes have t-tails, hence the room.
    assert 0.5 < inside[0] < 0.8 and 0.85 < inside[1] < 0.99
    assert abs(sum(scores) / len(scores)) < 0.5


def test_the_smoothed_density_is_that_of_the_eigenvalues():
    matrix, grid, width = with_spectrum(VALUES), torch.linspace(-6, 13, 1901).double(), 0.5
    found = density(Counted(matrix), matrix[0], seeded(), probes=200, steps=30)
    mean, error = found.smoothed(grid, width)
    bells = torch.exp(-((grid[:, None] - VALUES) / width).square() / 2) / (width * math.sqrt(2 * math.pi))
    assert abs(float(torch.trapezoid(mean, grid)) - 1) < 1e-6
    assert ((mean - bells.mean(1)).abs() <= 4 * error + 1e-9).all()
    few = density(Counted(matrix), matrix[0], seeded(), probes=50, steps=30).smoothed(grid, width)[1]
    assert 1.6 < float(few.mean() / error.mean()) < 2.5  # four times as many probes, half the error


def test_an_operator_with_few_distinct_values_ends_early_without_harm():
    matrix = with_spectrum(torch.tensor([2.0] * 6 + [0.0] * 4).double())
    operator = Counted(matrix)
    found = density(operator, matrix[0], seeded(), probes=40, steps=8)
    assert operator.count == 320
    torch.testing.assert_close(found.weights.sum(1), torch.ones(40).double())
    mean, error = found.moment(1)
    assert abs(mean - 1.2) < 4 * error
    heavy = found.weights > 1e-9
    assert torch.minimum((found.nodes - 2).abs(), found.nodes.abs())[heavy].max() < 1e-9


def test_more_steps_than_rows_are_rows():
    found = density(Counted(torch.eye(3)), torch.zeros(3), seeded(), probes=2, steps=40)
    assert found.nodes.shape == (2, 3) and found.size == 3 and isinstance(found, Density)


@pytest.mark.parametrize("options", [{"probes": 1}, {"steps": 0}])
def test_too_few_are_refused(options: dict[str, Any]):
    def operator(vector: Tensor) -> Tensor:
        return vector

    with pytest.raises(SpecError, match="2 probes and 1 step"):
        density(operator, torch.zeros(3), seeded(), **options)
