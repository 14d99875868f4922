"""One direction and its coefficients, from targets that were made of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from expunge.base.errors import SpecError
from expunge.numerics.hermite import polynomials
from expunge.numerics.single_index import SingleIndex, _Half, single_index

TEACHER = torch.tensor([0.3, 1.0, -0.5, 0.2, 0.0], dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(seed: int, count: int, inputs: int, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    """Standard normal inputs, and targets that depend on the first."""
    g = generator(seed)
    x = torch.randn(count, inputs, generator=g, dtype=torch.float64)
    return x, polynomials(x[:, 0], 4) @ TEACHER + noise * torch.randn(count, generator=g, dtype=torch.float64)


def found(seed: int, count: int = 2000, inputs: int = 20, **settings: Any) -> SingleIndex:
    return single_index(*made(seed, count, inputs), generator(seed), **{"replicates": 60, **settings})


def test_estimates_have_no_bias_and_intervals_cover():
    """40 data sets. Fitted and measured on the same examples, c_1^2 would be too large by 60 of them over 600."""
    runs = [found(seed, 600, 60) for seed in range(40)]
    values = torch.stack([run.teacher for run in runs])
    error = values.std(0) / len(runs) ** 0.5
    assert ((values.mean(0) - TEACHER).abs() < 3 * error + 0.01).all()
    squares = torch.tensor([float(run.squared.mean()) for run in runs])
    assert abs(float(squares.mean()) - 1) < 3 * float(squares.std()) / len(runs) ** 0.5
    naive = []
    for seed in range(40):
        x, y = made(seed, 600, 60)
        slope = torch.linalg.lstsq(x - x.mean(0), (y - y.mean())[:, None]).solution
        naive.append(float(((x - x.mean(0)) @ slope).square().mean()))
    assert np.mean(naive) > 1.05
    covered = []
    for run in runs:
        kappa = run.replicates[:, 2] / run.replicates[:, 1]
        low, high = kappa.quantile(torch.tensor([0.05, 0.95]).double()).tolist()
        covered.append(low <= -0.5 <= high)
    # 90 % asked for; 40 runs know it to 5 points.
    assert sum(covered) >= 0.78 * len(covered)


def test_intervals_are_as_wide_as_estimates_scatter():
    runs = [found(seed) for seed in range(30)]
    scatter = torch.stack([run.teacher for run in runs]).std(0)
    told = torch.stack([run.replicates.std(0) for run in runs]).mean(0)
    assert ((told / scatter)[:4] > 0.7).all() and ((told / scatter)[:4] < 1.4).all()


def test_scales_shifts_and_mixtures_of_inputs_do_not_matter():
    x, y = made(1, 400, 8)
    ascent_weight = torch.randn(8, 8, generator=generator(5), dtype=torch.float64) + 2 * torch.eye(8)
    plain, mixed = (single_index(z, y, generator(), replicates=20) for z in (x, 100 * x @ ascent_weight - 3))
    torch.testing.assert_close(mixed.teacher, plain.teacher, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(mixed.replicates, plain.replicates, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(100 * ascent_weight @ mixed.direction, plain.direction, rtol=1e-8, atol=1e-10)
    assert mixed.second == pytest.approx(plain.second, rel=1e-8) and mixed.overlap == pytest.approx(plain.overlap)
    scaled = single_index(x, -2 * y, generator(), replicates=20)
    signs = torch.tensor([-2, 2, -2, 2, -2]).double()  # u turns around with c_1
    torch.testing.assert_close(scaled.teacher, plain.teacher * signs, rtol=1e-8, atol=1e-10)


def test_by_least_squares_on_each_half():
    x, y = made(2, 300, 5)
    run = single_index(x, y, generator(7), replicates=20)
    parts = torch.randperm(300, generator=generator(7)).tensor_split(2)
    slopes = []
    for part in parts:
        design = torch.cat([torch.ones(150, 1).double(), x[part]], 1)
        slopes.append(torch.linalg.lstsq(design, y[part, None]).solution[1:, 0])
    covariance = (torch.cov(x[parts[0]].T, correction=0) + torch.cov(x[parts[1]].T, correction=0)) / 2
    squared = float(slopes[0] @ covariance @ slopes[1])
    assert float(run.teacher[1]) == pytest.approx(self_consistent(slopes, x, y, parts, covariance, squared), rel=1e-9)
    assert float(run.teacher[0]) == pytest.approx(float(y.mean()), rel=1e-12)
    spread = (x - x.mean(0)) @ run.direction
    assert float(spread.square().mean()) == pytest.approx(1, rel=0.01)


def self_consistent(slopes: Any, x: Tensor, y: Tensor, parts: Any, covariance: Tensor, squared: float) -> float:
    """The mean over both ways of cov(y, z) along the other half's slope over its cosine."""
    values = []
    for here, there in ((0, 1), (1, 0)):
        z = (x[parts[there]] - x[parts[there]].mean(0)) @ slopes[here]
        cosine = math.sqrt(squared) / float((slopes[here] @ covariance @ slopes[here]).sqrt())
        values.append(float((z * y[parts[there]]).mean() / z.square().mean().sqrt()) / cosine)
    return sum(values) / 2


def test_a_resampled_slope_is_right_to_first_order():
    """Against weighted least squares: halving the change of weights leaves a quarter of the error."""
    x, y = made(3, 80, 4)
    half, change = _Half(x, y, 2), torch.randn(80, generator=generator(), dtype=torch.float64)
    change -= change.mean()
    errors = []
    for size in (0.1, 0.05):
        w = 1 + size * change
        design = torch.cat([torch.ones(80, 1).double(), x], 1)
        exact = torch.linalg.solve(design.T @ (w[:, None] * design), design.T @ (w * y))[1:]
        errors.append(float((half.resampled(w) - exact).norm()))
        assert errors[-1] < 0.3 * float((half.slope - exact).norm())
    assert 3 < errors[0] / errors[1] < 5.5
    torch.testing.assert_close(half.resampled(torch.ones(80).double()), half.slope)


def test_a_second_direction_is_seen():
    """E[y (x x^T - 1)] / sqrt 2 of x_1 x_2 has the entries 1 / sqrt 2 twice; of h_2 along the direction nothing is left."""
    x, _ = made(4, 4000, 10)
    for extra, size in (
        (x[:, 1] * x[:, 2], 1.0),
        (x[:, 0] * x[:, 1], 1.0),
        (polynomials(x[:, 3], 2)[:, 2], 1.0),
        (polynomials(x[:, 0], 2)[:, 2], 0.0),
    ):
        run = single_index(x, x[:, 0] + extra, generator(), replicates=20)
        assert run.second == pytest.approx(size, abs=0.25) and run.second_error < 0.05
    scores = [one.second / one.second_error for one in (found(seed, 500, 12) for seed in range(30))]
    # Halves of one set are whitened together, which sets it a little below 0.
    assert 0.6 < np.std(scores) < 1.4 and -1.5 < np.mean(scores) < 0.5


def test_what_is_not_gaussian_is_seen():
    g = generator()
    signs = torch.randint(0, 2, (4000,), generator=g).double() * 2 - 1
    x = torch.randn(4000, 5, generator=g, dtype=torch.float64)
    x[:, 0] = signs  # h_2 of a sign is 0: E[h_2^2] - 1 = -1
    run = single_index(x, x[:, 0] * 2, g, replicates=20)
    assert run.excess == pytest.approx(-1, abs=0.02) and run.skewness == pytest.approx(0, abs=0.05)
    x[:, 0] = (
        -torch.rand(4000, generator=g, dtype=torch.float64).log() - 1
    )  # exponential: skewness 2, excess kurtosis 6
    run = single_index(x, x[:, 0] * 2, g, replicates=20)
    assert run.skewness == pytest.approx(2 / math.sqrt(2), abs=0.15) and run.excess == pytest.approx(
        (9 - 2 + 1) / 2 - 1, abs=1
    )
    assert abs(found(0).skewness) < 0.1 and abs(found(0).excess) < 0.2


def test_without_a_first_degree_nothing_is_claimed():
    x, _ = made(5, 500, 10)
    y = polynomials(x[:, 0], 2)[:, 2]
    runs = [single_index(x, y, generator(seed), replicates=40) for seed in range(6)]
    assert all(float(run.squared.quantile(0.05)) < 0 for run in runs)
    lost = [run for run in runs if run.teacher.isnan().any()]
    assert lost and all(math.isnan(run.overlap) and run.teacher[0] == pytest.approx(float(y.mean())) for run in lost)


def test_the_overlap_is_the_cosine_to_the_true_direction():
    told, true = [], []
    for seed in range(20):
        x, y = made(seed, 400, 40)
        told.append(single_index(x, y, generator(seed), replicates=20).overlap)
        for part in torch.randperm(400, generator=generator(seed)).tensor_split(2):
            slope = _Half(x[part], y[part], 1).slope
            true.append(float(slope[0] / slope.norm()))
    assert np.mean(told) == pytest.approx(np.mean(true), abs=0.02)


def test_it_follows_its_generator():
    one, same, other = found(0), found(0), single_index(*made(0, 2000, 20), generator(1), replicates=60)
    assert torch.equal(one.replicates, same.replicates) and not torch.equal(one.teacher, other.teacher)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"inputs": torch.ones(50, 3)}, "linear function of others"),
        ({"inputs": torch.randn(50, 20)}, "50 examples of 20 entries.*principal"),
        ({"targets": torch.ones(50)}, "targets: are all the same"),
        ({"targets": torch.randn(50, 2)}, "one number per example"),
        ({"targets": torch.full((50,), math.nan)}, "not finite"),
        ({"degree": 1}, "degree 2"),
        ({"replicates": 5}, "20 replicates"),
    ],
)
def test_what_is_refused(change: dict[str, Any], said: str):
    given = {"inputs": torch.randn(50, 3), "targets": torch.randn(50), "generator": generator(), **change}
    with pytest.raises(SpecError, match=said):
        single_index(**given)
