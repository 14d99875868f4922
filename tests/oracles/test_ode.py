"""Stiff solvers against solutions in closed form, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.linalg import expm

from expunge.base.errors import RunError, SpecError
from expunge.numerics.ode import Array, integrate

SOLVERS = ["LSODA", "BDF", "Radau"]
TIMES = np.linspace(0, 3, 31)
RATE = 1e5


def stiff(time: float, state: Array) -> Array:
    """Prothero and Robinson: y = cos t from whatever start, after a time of 1e-5."""
    return -RATE * (state - math.cos(time)) - math.sin(time)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("jacobian", [None, lambda time, state: np.array([[-RATE]])])
def test_a_fast_variable_follows_a_slow_one(solver, jacobian):
    found = integrate(stiff, np.array([0.0]), TIMES, jacobian=jacobian, solver=solver)
    # Between its own steps, which are long where nothing happens, Radau is a cubic.
    np.testing.assert_allclose(found.states[1:, 0], np.cos(TIMES[1:]), atol=1e-4 if solver == "Radau" else 1e-6)
    np.testing.assert_allclose(found.states[-1, 0], math.cos(3), atol=1e-8)
    # An explicit method needs about RATE * 3 / 3 steps of several evaluations.
    assert found.evaluations < 10_000
    np.testing.assert_allclose(found.at(np.array([1.234]))[0], math.cos(1.234), atol=1e-4)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_linear_system_is_a_matrix_exponential(solver):
    matrix = np.array([[-1000.0, 999.0, 0.0], [0.0, -1.0, 0.5], [0.2, 0.0, -0.1]])
    start = np.array([1.0, -2.0, 0.5])
    for tolerance, within in ((1e-4, 1e-2), (1e-10, 1e-7)):
        found = integrate(lambda t, y: matrix @ y, start, TIMES, solver=solver, tolerance=tolerance)
        exact = np.stack([expm(matrix * t) @ start for t in TIMES])
        assert np.abs(found.states - exact).max() < within
        assert found.states.shape == (31, 3) and (found.times == TIMES).all()


def test_a_jacobian_saves_evaluations():
    with_one, without = (
        integrate(stiff, np.array([0.0]), TIMES, jacobian=j, solver="Radau").evaluations
        for j in (lambda time, state: np.array([[-RATE]]), None)
    )
    assert with_one < without


def test_what_is_refused():
    start = np.ones(1)
    with pytest.raises(SpecError, match="unknown solver 'RK45'"):
        integrate(stiff, start, TIMES, solver="RK45")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="times: do not rise"):
        integrate(stiff, start, TIMES[::-1])
    with pytest.raises(SpecError, match="start: is not finite"):
        integrate(stiff, np.array([np.nan]), TIMES)
    with pytest.raises(SpecError, match="tolerance = 0"):
        integrate(stiff, start, TIMES, tolerance=0)


def test_a_solution_that_ends_early_or_takes_too_long():
    with pytest.raises(RunError, match=r"ode: .*(not finite|gave up|evaluations)"):
        integrate(lambda t, y: y**2, np.ones(1), TIMES, limit=20_000)  # 1 / (1 - t)
    with pytest.raises(RunError, match="more than 50 evaluations, at time"):
        integrate(stiff, np.zeros(1), TIMES, limit=50)
    with pytest.raises(RunError, match="the field is not finite at time 0"):
        integrate(lambda t, y: y * np.nan, np.ones(1), TIMES)
