"""What the study of features that fade trains, held against autograd, the equations, and itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from expunge.studies.feature_unlearning import setup
from expunge.studies.feature_unlearning.images import COMPONENTS, UNITS, network, watched, whitened
from expunge.studies.feature_unlearning.study import _end


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(4)


@pytest.mark.parametrize("shape", [setup.QUADRATIC, setup.SOFTPLUS])
def test_slopes_are_derivatives_and_means_are_zero(shape: setup.Shape) -> None:
    z = torch.linspace(-3, 3, 20, dtype=torch.float64, requires_grad=True)
    (true,) = torch.autograd.grad(shape[0](z).sum(), z)
    torch.testing.assert_close(shape[1](z.detach()), true, rtol=1e-6, atol=1e-8)
    normal = torch.randn(400_000, generator=generator(), dtype=torch.float64)
    assert abs(float(shape[0](normal).mean())) < 5e-3


def test_the_flow_of_few_units_is_the_corrected_model() -> None:
    setting = setup.NetworkSetting(units=12, inputs=30, batch=1, step=0.02)
    way = setup.by_flow(-0.5, setting, 30.0, generator())
    corrected, wide = (setup.errors(way, -0.5, setting, corrected=c) for c in (True, False))
    assert 3 * max(corrected) < min(wide)


def test_sgd_on_large_batches_is_the_flow() -> None:
    setting = setup.NetworkSetting(units=12, inputs=15, batch=4000)
    ways = [by(-0.5, setting, 10.0, generator(), points=20) for by in (setup.by_sgd, setup.by_flow)]
    np.testing.assert_allclose(ways[0].times, ways[1].times)
    assert np.abs(ways[0].alignment - ways[1].alignment).max() < 0.03
    assert np.abs(ways[0].scale / ways[1].scale - 1).max() < 0.03


def test_errors_are_of_the_model_that_is_named() -> None:
    setting = setup.NetworkSetting(units=10, inputs=10, batch=1, ratio=0.2)
    times = np.linspace(0, 20, 40)
    states = setup.model(0.25, 0.2).solve(1.0, times).states
    exact = setup.Way(times, np.tanh(states[:, 0]), states[:, 1])
    assert max(setup.errors(exact, 0.25, setting)) < 1e-9
    off = setup.Way(times, exact.alignment + 0.01, exact.scale * 1.02)
    assert setup.errors(off, 0.25, setting) == pytest.approx((0.01, 0.02))


def test_the_criterion_is_not_the_solver() -> None:
    assert [setup.predicted_end(k) for k in (2, 0.5, 0, -1)] == [1, 0.5, 0, 0]
    # Of another kappa the integration ends elsewhere, so that the table could be wrong.
    assert abs(_end(0.3, 1.0) - setup.predicted_end(0.5)) > 0.05


def test_the_slope_of_a_power_is_its_exponent() -> None:
    x = np.geomspace(1, 100, 7)
    assert setup.slope(x, 3 * x**-0.4) == pytest.approx(-0.4)


def test_images_are_whitened_and_rows_know_nothing_yet() -> None:
    x = whitened(500)
    torch.testing.assert_close(x.T @ x / len(x), torch.eye(COMPONENTS), atol=1e-3, rtol=0)
    direction = torch.nn.functional.normalize(torch.randn(COMPONENTS, generator=generator()), dim=0)
    first, last = network(direction, generator()).parameters()
    assert float((first.detach() @ direction).abs().max()) < 1e-6
    torch.testing.assert_close(first.detach().norm(dim=1), torch.ones(UNITS))
    assert float(last.detach().sum()) == pytest.approx(1.0)


def test_the_network_on_images_learns_the_direction() -> None:
    seen = watched(1.0, 600, 50, 7)
    assert seen.alignments[0] < 1e-5 and seen.alignments[-1] > 0.5
    assert seen.losses[-1] < seen.losses[0]
