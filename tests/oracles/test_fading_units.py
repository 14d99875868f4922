"""Groups of units against the gradient of their common loss, against equal units, and against descent on samples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from _single_index_sgd import sgd_step

from expunge.base.errors import SpecError
from expunge.numerics.fading import FastSlow
from expunge.studies.feature_unlearning.units import unit_paths

TEACHER, ACTIVATION = (0.1, 0.8, -0.3, 0.2), (0.2, 0.9, 0.4, -0.3)
TIMES = np.append(0.0, np.geomspace(0.01, 300, 60))


def test_it_is_a_gradient_flow_of_the_loss():
    """Small explicit steps along autograd's gradient, each group's divided by its share."""
    shares, scales = torch.tensor([0.2, 0.5, 0.3]).double(), torch.tensor([0.7, -1.2, 2.0]).double()
    s, c, sigma, step = torch.zeros(3).double(), torch.tensor(TEACHER).double(), torch.tensor(ACTIVATION).double(), 1e-3
    for _ in range(3000):
        s.requires_grad_(), scales.requires_grad_()
        loss = sum((c[k] - sigma[k] * (shares * scales * s**k).sum()) ** 2 for k in range(4)) / 2
        by_s, by_a = torch.autograd.grad(loss, [s, scales])
        s, scales = (s - step * (1 - s**2) * by_s / shares).detach(), (scales - step * 0.3 * by_a / shares).detach()
    found = unit_paths(TEACHER, ACTIVATION, 0.3, [0.7, -1.2, 2.0], np.array([0.0, 3.0]), shares=[0.2, 0.5, 0.3])
    # Explicit steps are off by their size.
    np.testing.assert_allclose(found.alignments[-1], s.numpy(), atol=2e-3)
    np.testing.assert_allclose(found.scales[-1], scales.numpy(), atol=2e-3)
    last = sum((c[k] - sigma[k] * (shares * scales * s**k).sum()) ** 2 for k in range(4)) / 2
    assert found.loss[-1] == pytest.approx(float(last), abs=2e-3)
    assert found.alignment[-1] == pytest.approx(float((shares * s**2).sum().sqrt()), abs=2e-3)


@pytest.mark.parametrize("solver", ["LSODA", "BDF"])
def test_equal_units_are_the_two_equations(solver: Any):
    wide = FastSlow(TEACHER, ACTIVATION, 0.05).solve(1.3, TIMES)
    found = unit_paths(TEACHER, ACTIVATION, 0.05, [1.3] * 4, TIMES, shares=[0.1, 0.2, 0.3, 0.4], solver=solver)
    for group in range(4):
        np.testing.assert_allclose(found.alignments[:, group], np.tanh(wide.states[:, 0]), atol=1e-5)
        np.testing.assert_allclose(found.scales[:, group], wide.states[:, 1], rtol=1e-5)
    assert (np.diff(found.loss) < 1e-8).all() and found.loss[0] > found.loss[-1]


def test_without_even_degrees_the_signs_mirror_each_other():
    """sigma(-z) = -sigma(z): a unit (-a, -w) is the unit (a, w)."""
    found = unit_paths((0, 1, 0, -0.4), (0, 1, 0, 0.5), 0.1, [1.0, -1.0], TIMES)
    np.testing.assert_allclose(found.alignments[:, 1], -found.alignments[:, 0], atol=1e-7)
    one = unit_paths((0, 1, 0, -0.4), (0, 1, 0, 0.5), 0.1, [1.0], TIMES)
    np.testing.assert_allclose(found.alignment, one.alignment, atol=1e-6)


def test_with_even_degrees_they_part_ways():
    found = unit_paths((0, 1, -0.5), (0, 1, 0.5), 0.1, [1.0, -1.0], TIMES)
    one = unit_paths((0, 1, -0.5), (0, 1, 0.5), 0.1, [1.0], TIMES)
    assert found.alignments[-1, 0] > 0 > found.alignments[-1, 1]
    assert abs(found.scales[-1].sum()) > 0.1
    assert np.abs(found.alignment - one.alignment).max() > 0.1


def test_descent_from_both_signs_follows():
    torch.manual_seed(0)
    units, inputs, batch, ratio = 120, 60, 500, 0.1
    rows = torch.randn(units, inputs)
    rows[:, 0] = 0
    rows = torch.nn.functional.normalize(rows, dim=1)
    signs = torch.tensor([1.0, -1.0]).repeat_interleave(units // 2)
    scales = signs.clone()
    for _ in range(400):
        rows, scales = sgd_step(rows, scales, batch, ratio)
    found = unit_paths((0, 1, -0.5), (0, 1, 0.5), ratio, [1.0, -1.0], np.array([0.0, 20.0]))
    for group, sign in enumerate((1.0, -1.0)):
        assert float(rows[signs == sign, 0].mean()) == pytest.approx(found.alignments[-1, group], abs=0.03)
        assert float(scales[signs == sign].mean()) == pytest.approx(found.scales[-1, group], abs=0.06)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shares": [0.5, 0.4]}, "shares: do not fit"),
        ({"shares": [1.0]}, "shares: do not fit"),
        ({"scales": [1.0, 0.0]}, "a scale is 0"),
        ({"ratio": 0.0}, "ratio not positive"),
        ({"teacher": (math.nan, 1.0)}, "not finite"),
    ],
)
def test_what_is_refused(change: dict[str, Any], said: str):
    given = {
        "teacher": TEACHER,
        "activation": ACTIVATION,
        "ratio": 0.1,
        "scales": [1.0, -1.0],
        "times": TIMES,
        **change,
    }
    with pytest.raises(SpecError, match=said):
        unit_paths(**given)
