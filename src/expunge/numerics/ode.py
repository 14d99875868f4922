"""Stiff ordinary differential equations, by SciPy's implicit solvers.

If one variable settles a thousand times faster than another moves, explicit methods take steps of the fast time scale
all the way. The implicit ones here do not: LSODA and BDF for sweeps, Radau as the reference. Between its own steps a
solver interpolates, Radau only by a cubic: if you need a value to many digits, make its time the last one. Arrays are
NumPy's in double precision: the right-hand sides are a few numbers, for which tensors are slow.

Cost: a few hundred to a few thousand evaluations of the right-hand side, more with more variables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy.integrate import solve_ivp

from expunge.base.errors import RunError, SpecError, unknown

Array = npt.NDArray[np.float64]
Field = Callable[[float, Array], Array]
"""Maps time and state `[n]` to the state's derivative `[n]`."""
Jacobian = Callable[[float, Array], Array]
"""Maps time and state `[n]` to the derivative of the field by the state, `[n, n]`."""
Solver = Literal["LSODA", "BDF", "Radau"]


@dataclass(frozen=True)
class Trajectory:
    """A solution."""

    times: Array
    """The given times, `[t]`."""
    states: Array
    """`[t, n]`."""
    at: Callable[[Array], Array]
    """The solver's own interpolation: maps times `[m]` within the range to states `[n, m]`."""
    evaluations: int
    """Number of evaluations of the field."""


def integrate(
    field: Field,
    start: Array,
    times: Array,
    *,
    jacobian: Jacobian | None = None,
    solver: Solver = "LSODA",
    tolerance: float = 1e-8,
    limit: int = 200_000,
) -> Trajectory:
    """Solve dy/dt = field(t, y) from y(times[0]) = start.

    Args:
        field: The right-hand side.
        start: State at the first time, `[n]`.
        times: Rising, at least two; the solver chooses its own steps between them.
        jacobian: Derivative of the field by the state; by default the solver takes differences.
        solver: `"Radau"` is the most reliable, `"LSODA"` the fastest.
        tolerance: Relative tolerance of one step; the absolute one is a hundredth of it. The error at the end is of
            this order, times the equation's amplification of errors.
        limit: Largest number of evaluations of the field.

    Returns:
        The states at these times.

    Raises:
        SpecError: The solver is unknown, times do not rise, the start is not a finite vector, or the tolerance is out
            of range.
        RunError: The field is not finite, the solver gives up, or the limit is exceeded; names the time.
    """
    if solver not in get_args(Solver):
        raise unknown("solver", str(solver), get_args(Solver), where="ode")
    if times.ndim != 1 or len(times) < 2 or not (np.diff(times) > 0).all():
        raise SpecError("do not rise, or are fewer than two", where="times", allowed="rising numbers")
    if start.ndim != 1 or not np.isfinite(start).all():
        raise SpecError("is not finite, or not a vector", where="start", allowed="finite numbers [n]")
    if not 1e-13 <= tolerance < 1:
        raise SpecError(f"tolerance = {tolerance}", where="ode", allowed="from 1e-13 to 1")
    evaluations = 0

    def counted(time: float, state: Array) -> Array:
        nonlocal evaluations
        evaluations += 1
        if evaluations > limit:
            raise RunError(f"more than {limit} evaluations, at time {time:.4g}", where="ode", remedy="raise limit")
        slope = field(time, state)
        if not np.isfinite(slope).all():
            raise RunError(f"the field is not finite at time {time:.4g}", where="ode")
        return slope

    solution = solve_ivp(
        counted,
        (times[0], times[-1]),
        start,
        method=solver,
        t_eval=times,
        dense_output=True,
        rtol=tolerance,
        atol=tolerance / 100,
        **({} if jacobian is None else {"jac": jacobian}),
    )
    if not solution.success:
        raise RunError(f"the solver gave up: {solution.message}", where="ode", remedy="try solver = 'Radau'")
    return Trajectory(solution.t, solution.y.T, solution.sol, evaluations)
