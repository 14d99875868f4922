"""Hermite coefficients against integrals that are known, and errors that say how far they are off."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import hermite_e
from torch import Tensor
from torch.nn import functional as F

from expunge.base.errors import RunError, SpecError
from expunge.numerics.hermite import hermite, polynomials

# Sums of a few hundred products in float64.
EXACT = {"rtol": 1e-12, "atol": 1e-13}


def exactly(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def ramp(kink: float, degree: int) -> Tensor:
    """max(z - b, 0) by parts: phi(b) - b P(z > b), P(z > b), then phi(b) He_{k-2}(b) / sqrt(k!)."""
    phi, above = math.exp(-kink * kink / 2) / math.sqrt(2 * math.pi), math.erfc(kink / math.sqrt(2)) / 2
    found = [phi - kink * above, above]
    for k in range(2, degree + 1):
        found.append(phi * hermite_e.hermeval(kink, [0] * (k - 2) + [1]) / math.sqrt(math.factorial(k)))
    return exactly(*found[: degree + 1])


def test_polynomials_are_those_of_numpy_and_orthonormal():
    z = torch.linspace(-3, 3, 11, dtype=torch.float64)
    for k in range(9):
        exact = hermite_e.hermeval(z.numpy(), [0] * k + [1]) / math.sqrt(math.factorial(k))
        torch.testing.assert_close(polynomials(z, 8)[:, k], torch.from_numpy(exact), **EXACT)
    points, weights = hermite_e.hermegauss(12)
    h = polynomials(torch.from_numpy(points), 8)
    gram = h.T @ (torch.from_numpy(weights / weights.sum())[:, None] * h)
    torch.testing.assert_close(gram, torch.eye(9).double(), **EXACT)
    assert polynomials(z, 0).shape == (11, 1)


def test_a_polynomial_gives_its_own_coefficients():
    given = exactly(0.3, -1.0, 2.0, 0.0, 0.7, -0.2)
    found = hermite(lambda z: polynomials(z, 5) @ given, 8)
    torch.testing.assert_close(found.values, torch.cat([given, torch.zeros(3).double()]), **EXACT)
    assert found.converged and found.energy == pytest.approx(float(given.square().sum()), rel=1e-12)
    assert found.left_out == pytest.approx(0, abs=1e-12)
    short = hermite(lambda z: polynomials(z, 5) @ given, 2)
    assert short.left_out == pytest.approx((0.7**2 + 0.2**2) / float(given.square().sum()), rel=1e-10)


def test_the_exponential():
    """E[exp(t z) h_k] = exp(t^2 / 2) t^k / sqrt(k!)."""
    t = 0.7
    found = hermite(lambda z: torch.exp(t * z), 6)
    exact = [math.exp(t * t / 2) * t**k / math.sqrt(math.factorial(k)) for k in range(7)]
    torch.testing.assert_close(found.values, exactly(*exact), **EXACT)
    assert found.energy == pytest.approx(math.exp(2 * t * t), rel=1e-12)


def test_the_error_function():
    """By parts and by the normal law: E[erf(z) h_1] = E[erf'(z)] = 2 / sqrt(pi) / sqrt(3); E[erf^2] is an arcsine."""
    found = hermite(torch.erf, 3)
    first = 2 / math.sqrt(3 * math.pi)
    # He_3 by parts: E[erf'''(z)] = 2 / sqrt(pi) E[(4 z^2 - 2) exp(-z^2)], and E[z^2 exp(-z^2)] = 3^(-3/2).
    third = 2 / math.sqrt(math.pi) * (4 * 3**-1.5 - 2 * 3**-0.5) / math.sqrt(6)
    torch.testing.assert_close(found.values, exactly(0, first, 0, third), **EXACT)
    assert found.energy == pytest.approx(2 / math.pi * math.asin(2 / 3), rel=1e-12)


@pytest.mark.parametrize("function", [torch.tanh, F.gelu, F.softplus, F.silu])
def test_smooth_activations_against_a_fine_sum(function):
    """The trapezoidal rule over the line, which converges for smooth integrands as fast."""
    z = torch.linspace(-14, 14, 200_001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    exact = (z[1] - z[0]) * (polynomials(z, 6).T @ (density * function(z)))
    found = hermite(function, 6)
    assert found.converged
    torch.testing.assert_close(found.values, exact, rtol=1e-9, atol=1e-10)


def test_relu_converges_slowly_and_says_so():
    errors = []
    for limit in (128, 256, 512, 1024):
        found = hermite(torch.relu, 8, limit=limit)
        off = (found.values - ramp(0.0, 8)).abs()
        assert not found.converged and found.nodes == limit
        assert (off <= found.errors).all() and found.errors.max() < 8 * off.max()
        errors.append(float(off.max()))
    # As 1 / n.
    assert all(0.45 < after / before < 0.55 for before, after in pairwise(errors))


@settings(deadline=None, max_examples=40)
@given(st.floats(-3, 3), st.sampled_from([128, 256, 512]))
def test_a_kink_anywhere_stays_within_the_error_or_is_cut_out(kink: float, limit: int):
    def function(z: Tensor) -> Tensor:
        return (z - kink).clamp_min(0)

    exact = ramp(kink, 6)
    rough, cut = hermite(function, 6, limit=limit), hermite(function, 6, kinks=(kink,))
    # An estimate from three quadratures, not a bound: seldom off by twice as much.
    assert (rough.values - exact).abs().max() <= 2 * rough.errors.max()
    assert cut.converged and ((cut.values - exact).abs() <= cut.errors).all() and cut.errors.max() < 1e-9


def test_a_jump_and_two_kinks_by_pieces():
    found = hermite(lambda z: z.clamp(-1, 1), 5, kinks=(1.0, -1.0))
    exact = ramp(-1.0, 5) - ramp(1.0, 5)
    exact[0] -= 1
    torch.testing.assert_close(found.values, exact, **EXACT)
    step = hermite(torch.sign, 1, kinks=(0,))
    torch.testing.assert_close(step.values, exactly(0, math.sqrt(2 / math.pi)), **EXACT)
    beyond = hermite(torch.relu, 2, kinks=(0.0, 99.0))
    torch.testing.assert_close(beyond.values, ramp(0.0, 2), **EXACT)


def test_a_float32_function_and_zero():
    single = hermite(lambda z: z.float(), 2, tolerance=1e-6)
    assert single.values.dtype == torch.float64 and single.values[1] == pytest.approx(1, abs=1e-6)
    none = hermite(torch.zeros_like, 2)
    assert none.left_out == 0 and none.values.tolist() == [0, 0, 0]


def test_what_is_refused():
    with pytest.raises(SpecError, match="one value for each point"):
        hermite(lambda z: z[:3], 2)
    with pytest.raises(SpecError, match="degree = -1"):
        hermite(torch.tanh, -1)
    with pytest.raises(SpecError, match="limit = 100"):
        hermite(torch.tanh, 2, limit=100)
    with pytest.raises(RunError, match="function: is not finite at -"):
        hermite(torch.log, 2)
