"""The two equations of a feature that fades, against gradients of the loss they follow from and what is known of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from _single_index_sgd import sgd_step
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from expunge.base.errors import SpecError
from expunge.numerics.fading import FastSlow
from expunge.numerics.hermite import polynomials
from expunge.numerics.ode import integrate

ACTIVATION = (0.0, 1.0, 0.5)
TEACHER4, ACTIVATION4 = (0.1, 0.8, -0.3, 0.2, -0.4), (0.2, 0.9, 0.4, -0.3, 0.25)


def model(c_2: float, ratio: float = 0.01, units: int | None = None) -> FastSlow:
    return FastSlow((0.0, 1.0, c_2), ACTIVATION, ratio, units)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def simplex(units: int, alignment: Tensor) -> Tensor:
    """Unit vectors `[units, units + 1]` with this alignment to the first axis, as far apart as they can be."""
    corners = torch.eye(units, dtype=torch.float64) - 1 / units
    corners = corners / corners.norm(dim=1, keepdim=True)
    return torch.cat([alignment.expand(units, 1), (1 - alignment**2).sqrt() * corners], 1)


def population_loss(teacher: Any, activation: Any, a: Tensor, rows: Tensor) -> Tensor:
    """Mean of (y - f)^2 / 2, since E[h_k(<p, x>) h_l(<q, x>)] is <p, q>^k where k = l and 0 elsewhere."""
    overlaps, alignments, total = rows @ rows.T, rows[:, 0], tensor(0.0)
    for c, sigma in zip(teacher, activation, strict=True):
        k = teacher.index(c)
        total = total + c * c / 2 - c * sigma * (a * alignments**k).mean()
        total = total + sigma**2 * (a[:, None] * a * overlaps**k).mean() / 2
    return total


# --- The equations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("s", "a"), [(0.0, 0.7), (0.3, 1.5), (-0.2, 2.0), (0.9, 0.4), (0.6, 8.0)])
def test_the_field_is_a_gradient_of_the_loss(s: float, a: float):
    """ds/dt = -(1 - s^2) dL/ds and da/dt = -epsilon dL/da of the sum over degrees, by autograd."""
    c, sigma, found = tensor(*TEACHER4), tensor(*ACTIVATION4), FastSlow(TEACHER4, ACTIVATION4, 0.05)
    at = tensor(s, a).requires_grad_()
    powers = torch.stack([at[0] ** k for k in range(5)])
    loss = (c - at[1] * sigma * powers).square().sum() / 2
    slope = torch.autograd.grad(loss, at)[0]
    # dv/dt = ds/dt / (1 - s^2).
    np.testing.assert_allclose(found.field(0, np.array([math.atanh(s), a])), -slope.numpy() * [1, 0.05], rtol=1e-11)
    assert found.loss(np.array(s), np.array(a)) == pytest.approx(float(loss.detach()), rel=1e-12)


@pytest.mark.parametrize(("s", "a"), [(0.3, 1.5), (0.9, 0.4), (0.1, 8.0)])
def test_the_field_of_few_units_is_the_gradient_flow_of_their_vectors(s: float, a: float):
    """Autograd on the vectors of a simplex, made tangent to the sphere and multiplied by N."""
    rows = simplex(5, tensor(s)).requires_grad_()
    scales = tensor(*[a] * 5).requires_grad_()
    loss = population_loss(TEACHER4, ACTIVATION4, scales, rows)
    by_rows, by_scales = torch.autograd.grad(loss, [rows, scales])
    tangent = by_rows - (by_rows * rows).sum(1, keepdim=True) * rows
    found = FastSlow(TEACHER4, ACTIVATION4, 0.05, units=5)
    v, rate = found.field(0, np.array([math.atanh(s), a]))
    np.testing.assert_allclose((1 - s * s) * v, -5 * tangent[:, 0].detach().numpy(), rtol=1e-10)
    np.testing.assert_allclose(rate, -5 * 0.05 * by_scales.numpy(), rtol=1e-10)
    assert found.loss(np.array(s), np.array(a)) == pytest.approx(float(loss.detach()), rel=1e-11)


@pytest.mark.parametrize("units", [None, 2, 7])
@pytest.mark.parametrize("state", [(0.4, 1.3), (-0.5, 0.2), (2.0, 5.0)])
def test_the_jacobian_is_that_of_the_field(units: int | None, state: tuple[float, float]):
    found, step = FastSlow(TEACHER4, ACTIVATION4, 0.05, units), 1e-6
    columns = []
    for at in range(2):
        shift = step * np.eye(2)[at]
        columns.append((found.field(0, state + shift) - found.field(0, state - shift)) / (2 * step))
    # Central differences: 1e-12 of the third derivative, and rounding of 1e-16 / 1e-6.
    np.testing.assert_allclose(found.jacobian(0, np.array(state)), np.stack(columns, 1), rtol=1e-6, atol=1e-7)


def test_the_alignment_at_a_fixed_scale_is_a_sum_of_logarithms():
    """A linear activation: ds/dt = a (1 - s^2) (p - q s), whose time is known by partial fractions."""
    a, p, q = 2.0, 1.0, 2.0 * 0.8
    found = FastSlow((0.0, p / 0.8), (0.0, 0.8), 1e-12)
    q = a * 0.8**2
    times = np.array([0.0, 0.3, 1.0, 2.5])
    s = np.tanh(found.solve(a, times, tolerance=1e-11).states[1:, 0])
    logs = (
        -np.log(1 - s) / (2 * (p - q)) + np.log(1 + s) / (2 * (p + q)) + q * np.log(p / (p - q * s)) / (q * q - p * p)
    )
    # Signs of the three parts from 1 / ((1 - s)(1 + s)(p - q s)), each integrated from 0.
    np.testing.assert_allclose(logs / a, times[1:], rtol=1e-7)


def test_the_scale_relaxes_exponentially_where_the_feature_is_kept():
    """At s = 1: da/dt = epsilon (V(1) - a U(1))."""
    found, times = model(1.0), np.linspace(0, 300, 7)
    solved = integrate(found.field, np.array([18.0, 0.3]), times, jacobian=found.jacobian, tolerance=1e-10)
    exact = 1.2 + (0.3 - 1.2) * np.exp(-0.01 * 1.25 * times)
    np.testing.assert_allclose(solved.states[:, 1], exact, rtol=1e-7)
    assert (solved.states[:, 0] > 18 - 1e-9).all()  # stays where it is: no step crosses s = 1


# --- Where it ends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
@pytest.mark.parametrize(
    ("c_2", "regime", "s", "a"), [(1.0, "kept", 1, 1.2), (0.25, "part", 0.5, 2), (0.1, "part", 0.2, 5)]
)
def test_kappa_tells_the_end(c_2: float, regime: str, s: float, a: float, scale: float):
    found = model(c_2)
    assert found.kappa == pytest.approx(2 * c_2) and found.constant == 1
    assert found.regime(scale) == (regime, pytest.approx(s, abs=1e-9)) and found.law() is None
    path = found.path(scale, 1e7)
    assert path.alignment[-1] == pytest.approx(s, abs=1e-6) and path.scale[-1] == pytest.approx(a, rel=1e-6)
    assert (np.diff(path.loss) < 1e-9).all()
    if regime == "part":
        assert path.loss[-1] == pytest.approx(0, abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(st.floats(-3, 3), st.floats(0.1, 6), st.floats(0.3, 2), st.floats(0.2, 2))
def test_the_end_of_two_degrees_is_kappa_cut_at_0_and_1(kappa: float, scale: float, sigma_1: float, sigma_2: float):
    if min(abs(kappa), abs(kappa - 1)) < 1e-3:
        return
    constant = 0.7
    found = FastSlow((0.0, constant * sigma_1, kappa * constant * sigma_2), (0.0, sigma_1, sigma_2), 0.1)
    assert found.regime(scale)[1] == pytest.approx(min(max(kappa, 0), 1), abs=1e-9)
    assert found.regime(scale)[0] == ("lost" if kappa < 0 else "kept" if kappa > 1 else "part")


def test_a_large_initial_scale_reverses_it():
    small, large = model(0.25).path(1.0, 1e6), model(0.25).path(3.0, 1e6)
    assert small.peak > 0.85 and small.alignment[-1] == pytest.approx(0.5, abs=1e-6)
    assert (np.diff(large.alignment) > -1e-8).all() and large.alignment[-1] == pytest.approx(0.5, abs=1e-6)
    assert model(0.25).settled(1.0) > 0.5 > model(0.25).settled(3.0)


@pytest.mark.parametrize(("scale", "peak"), [(0.5, 0.82), (1.0, 0.59), (3.0, 0.28)])
def test_the_peak_falls_with_the_initial_scale(scale: float, peak: float):
    path = model(-0.5).path(scale, 1e5)
    assert path.peak == pytest.approx(peak, abs=0.005) and path.peak >= path.alignment.max()
    assert path.peak == pytest.approx(
        float(np.tanh(model(-0.5).solve(scale, np.linspace(0, 40, 40_001)).states[:, 0]).max()), abs=1e-6
    )
    half = model(-0.5).solve(scale, np.array([0.0, path.peak_time + path.half_life])).states[-1, 0]
    assert math.tanh(half) == pytest.approx(path.peak / 2, rel=1e-4)


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.5])
def test_it_settles_first_where_it_is_at_rest_at_that_scale(scale: float):
    for teacher, activation in (((0, 1, -0.5), ACTIVATION), (TEACHER4, ACTIVATION4)):
        found = FastSlow(teacher, activation, 1e-9)
        assert found.path(scale, 2000.0).alignment[-1] == pytest.approx(found.settled(scale), abs=1e-5)
        if found.settled(scale) < 1:
            assert found.manifold(np.array(found.settled(scale))) == pytest.approx(scale, rel=1e-9)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.floats(-1, 1), min_size=3, max_size=3),
    st.lists(st.floats(-1, 1), min_size=3, max_size=3),
    st.floats(0.3, 3),
)
def test_the_slow_flow_tells_where_the_equations_end(c: list[float], sigma: list[float], scale: float):
    found = FastSlow((0.0, 1.0, *c), (0.0, 1.0, *sigma), 0.02)
    regime, end = found.regime(scale)
    near = np.abs(found.drift(np.array([min(max(end, 0.01), 1.0) - 0.005, min(max(end, 0.01) + 0.005, 1.0)])))
    if regime == "folded" or near.min() < 3e-4:  # Where two ends are about to meet, a long time decides.
        return
    last = found.path(scale, 1e6).alignment[-1]
    assert last < 0.2 if regime == "lost" else last == pytest.approx(end, abs=0.01)


def test_a_curve_that_folds_is_not_followed():
    """The scale falls until there is no rest nearby, and the alignment jumps; there the equations are asked."""
    found = FastSlow((0.0, 1.0, -0.78, -1.86, 1.78), (0.0, 1.0, 0.51, -0.25, 0.75), 0.001)
    curve = np.diff(found.manifold(np.linspace(0.05, 1, 400)))
    assert (curve > 0).any() and (curve < 0).any()
    regime, end = found.regime(2.96)
    assert regime == "folded" and math.isnan(end)
    assert found.settled(2.96) < 0.4 and found.path(2.96, 1e6).alignment[-1] > 0.999


def test_a_mean_that_nothing_else_learns_arrests_it():
    """With sigma_0 and no c_0, the drift has -sigma_0^2 a: nothing grows without bound."""
    bare, arrested = model(-0.5), FastSlow((0.0, 1.0, -0.5), (0.5, 1.0, 0.5), 0.01)
    assert bare.regime(1.0) == ("lost", 0.0) and arrested.regime(1.0)[0] != "lost"
    assert arrested.law() is None and bare.law() is not None
    assert arrested.path(1.0, 1e7).alignment[-1] == pytest.approx(arrested.regime(1.0)[1], abs=1e-4)


# --- How fast --------------------------------------------------------------------------------------------------------

LAWS = {
    "a term of the wrong sign": ((0, 1, -0.5), ACTIVATION, -1 / 3, 3 * 0.25),
    "another constant": ((0, 2, -0.5), (0, 0.8, 0.5), -1 / 3, 3 * 0.25 * 2.5**2),
    "none in the data": ((0, 1, 0), ACTIVATION, -1 / 4, 4 * 0.25),
    "third degree": ((0, 1, 0, -0.5), (0, 1, 0, 0.4), -1 / 4, 8 * 0.2),
    "third degree against the second": ((0, 1, 0, 0.2), (0, 1, 0.5, 0.4), -1 / 4, 4 * (0.25 - 2 * 0.08)),
    "fourth degree": ((0, 1, 0, 0, -0.5), (0, 1, 0, 0, 0.4), -1 / 5, 15 * 0.2),
}


@pytest.mark.parametrize("name", LAWS)
def test_a_lost_feature_fades_by_a_power_of_time(name: str):
    """s = C / a and a^(m + 1) = a_0^(m + 1) + rate t, the rates by hand from (p^2 - 1) epsilon |sigma_p c_p| C^p."""
    teacher, activation, exponent, rate = LAWS[name]
    found = FastSlow(teacher, activation, 0.01)
    law = found.law()
    assert law is not None and found.regime(1.0) == ("lost", 0.0)
    assert law[0] == pytest.approx(exponent) and law[1] == pytest.approx(0.01 * rate)
    path = found.path(1.0, 1e11)
    late = path.times > 1e9
    slope = np.polyfit(np.log(path.times[late]), np.log(path.alignment[late]), 1)[0]
    assert slope == pytest.approx(exponent, abs=0.002)
    assert path.alignment[-1] == pytest.approx(found.constant * (law[1] * 1e11) ** exponent, rel=0.02)


def test_the_third_degree_keeps_it_where_it_is_strong():
    """Lost for 2 sigma_3 c_3 < sigma_2^2 C only."""
    assert FastSlow((0, 1, 0, 0.3), (0, 1, 0.5, 0.4), 0.01).regime(1.0)[0] == "lost"
    assert FastSlow((0, 1, 0, 0.33), (0, 1, 0.5, 0.4), 0.01).regime(1.0)[0] != "lost"


def test_the_half_life_is_cubic_in_the_scale_and_inverse_in_the_strength():
    scales = np.array([8.0, 16.0, 32.0])
    lives = np.array([model(-0.25).path(a, 1e10).half_life for a in scales])
    formula = 7 * scales**3 / (3 * 0.01 * 0.125)
    np.testing.assert_allclose(lives / formula, 1, atol=0.025)
    assert np.polyfit(np.log(scales), np.log(lives), 1)[0] == pytest.approx(3, abs=0.02)
    # Below |c_2| about sigma_2 C / a_0 the second degree of the activation alone is as strong.
    weak = [model(-c).path(128.0, 1e10).half_life for c in (0.125, 0.25)]
    assert math.log(weak[1] / weak[0]) / math.log(2) == pytest.approx(-1, abs=0.03)
    assert model(1.0).path(1.0, 1e4).half_life == math.inf


def test_slow_time_is_epsilon_times_time():
    """After the fast beginning, runs of other epsilon are one curve."""
    runs = [
        np.tanh(model(-0.5, e).solve(1.0, np.array([0.0, 20 / e, 200 / e])).states[1:, 0]) for e in (0.02, 0.01, 0.005)
    ]
    coarse, fine = np.abs(runs[0] - runs[1]).max(), np.abs(runs[1] - runs[2]).max()
    assert coarse < 0.01 and fine < 0.65 * coarse


def test_few_units_keep_a_floor():
    found = model(-0.5, 0.1, units=50)
    regime, floor = found.regime(1.0)
    path = found.path(1.0, 1e6)
    assert regime == "lost" and path.alignment[-1] == pytest.approx(floor, abs=1e-6) and found.law() is None
    # a_max^3 = N |c_2 / sigma_2| C^2, hence s N^(1/3) = 1 here.
    ratios = [model(-0.5, 0.1, n).regime(1.0)[1] * n ** (1 / 3) for n in (100, 1000, 10_000, 100_000)]
    assert ratios == pytest.approx([0.91, 0.95, 0.98, 0.99], abs=0.005)
    many = model(-0.5, 0.1, 10**9).path(1.0, 1e3)
    np.testing.assert_allclose(many.alignment, model(-0.5, 0.1).path(1.0, 1e3).alignment, atol=1e-6)


def test_few_vectors_under_gradient_flow_go_the_same_way():
    """Eight vectors from random directions, with small steps of the exact gradient; only the two equations know of s."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(8, 12, generator=generator, dtype=torch.float64)
    rows[:, 0] = 0
    rows, scales = torch.nn.functional.normalize(rows, dim=1), torch.ones(8, dtype=torch.float64)
    teacher, ratio, step = (0.0, 1.0, -0.5), 0.1, 0.05
    for _ in range(4000):
        rows.requires_grad_(), scales.requires_grad_()
        slopes = torch.autograd.grad(population_loss(teacher, ACTIVATION, scales, rows), [rows, scales])
        rows = torch.nn.functional.normalize((rows - 8 * step * slopes[0]).detach(), dim=1)
        scales = (scales - 8 * step * ratio * slopes[1]).detach()
    found = FastSlow(teacher, ACTIVATION, ratio, units=8).path(1.0, 200.0)
    assert rows[:, 0].numpy() == pytest.approx(found.alignment[-1], abs=4e-3)
    assert scales.numpy() == pytest.approx(found.scale[-1], rel=8e-3)


def test_stochastic_descent_at_finite_width_follows():
    """Fresh Gaussian batches; alignment rises and falls while the equations say so."""
    torch.manual_seed(0)
    units, inputs, batch, ratio = 60, 30, 400, 0.1
    u = torch.zeros(inputs)
    u[0] = 1
    rows = torch.nn.functional.normalize(torch.randn(units, inputs) * (1 - u), dim=1)
    scales, seen = torch.ones(units), []
    for _ in range(1200):
        rows, scales = sgd_step(rows, scales, batch, ratio)
        seen.append(float(rows[:, 0].mean()))
    path = FastSlow((0.0, 1.0, -0.5), ACTIVATION, ratio, units=inputs).path(1.0, 60.0)
    expected = np.interp(0.05 * np.arange(1, 1201), path.times, path.alignment)
    assert np.sqrt(np.mean((np.array(seen) - expected) ** 2)) < 0.02
    assert max(seen) > seen[-1] + 0.05 and float(scales.mean()) == pytest.approx(path.scale[-1], rel=0.06)


@pytest.mark.parametrize("solver", ["BDF", "Radau"])
def test_solvers_agree(solver: Any):
    for found in (model(-0.5), model(0.1), model(1.0), model(-0.5, units=30)):
        one, other = (found.solve(0.5, np.array([0.0, 3.0, 5e3]), s).states[-1] for s in ("LSODA", solver))
        np.testing.assert_allclose(
            np.append(np.tanh(one[0]), one[1]), np.append(np.tanh(other[0]), other[1]), rtol=1e-5
        )


def test_the_loss_is_that_of_the_functions():
    """By quadrature over two correlated normal variables: the input along u, and along a unit."""
    points, weights = np.polynomial.hermite_e.hermegauss(20)
    z, w = torch.from_numpy(points), torch.from_numpy(weights / weights.sum())
    s, a = 0.35, 1.7
    y = polynomials(z, 4) @ tensor(*TEACHER4)
    mixed = (s * z[:, None] + math.sqrt(1 - s * s) * z).flatten()
    cross = (polynomials(mixed, 4) @ tensor(*ACTIVATION4)).view(20, 20)
    # E[y^2], E[y sigma] and the mean over independent units of E[sigma sigma'] = E over z of (E[sigma | z])^2.
    given_z = cross @ w
    exact = float((w * (y - a * given_z).square()).sum()) / 2
    assert FastSlow(TEACHER4, ACTIVATION4, 0.1).loss(np.array(s), np.array(a)) == pytest.approx(exact, rel=1e-10)


def test_what_is_refused():
    with pytest.raises(SpecError, match=r"c_1 sigma_1 = 0.*does not find the direction"):
        FastSlow((0.0, 0.0, 1.0), ACTIVATION, 0.1)
    with pytest.raises(SpecError, match="reverse u"):
        FastSlow((0.0, -1.0), ACTIVATION, 0.1)
    with pytest.raises(SpecError, match="the ratio"):
        model(0.5, 0.0)
    with pytest.raises(SpecError, match="units = 1"):
        model(0.5, 0.1, 1)
    with pytest.raises(SpecError, match="initial scale is -1"):
        model(0.5).path(-1.0, 10)
    with pytest.raises(SpecError, match="horizon = 0"):
        model(0.5).path(1.0, 0.0)
