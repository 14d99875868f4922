"""Lanczos against spectra that are known: values, vectors, error bounds, products, and what it refuses."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from _spectra import Counted, seeded, with_spectrum
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from expunge.base.errors import RunError, SpecError
from expunge.numerics._krylov import Krylov
from expunge.numerics.lanczos import lanczos

# Eigenvalues of matrices whose norm is at most 100, by two algorithms in float64.
EXACT = {"rtol": 1e-9, "atol": 1e-9}

SPECTRA = {
    "spread": torch.linspace(-3, 5, 40).double(),
    "clustered": torch.cat([torch.linspace(9.99, 10, 5), torch.linspace(-1e-3, 1e-3, 35)]).double(),
    "degenerate": torch.tensor([4.0] * 6 + [1.0] * 20 + [-2.0] * 14).double(),
    "negative": -torch.logspace(-3, 2, 40).double(),
    "low rank": torch.cat([torch.tensor([7.0, 3.0]), torch.zeros(38)]).double(),
    "decaying": torch.logspace(1, -12, 40).double(),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_values_and_vectors_are_those_of_a_dense_decomposition(name: str):
    matrix = with_spectrum(SPECTRA[name])
    exact = np.unique(np.linalg.eigh(matrix.numpy())[0].round(8))  # from one start, a multiple one is seen once
    operator = Counted(matrix)
    found = lanczos(operator, matrix[0], seeded(), top=2, bottom=1, tolerance=1e-11)
    assert found.converged and found.products == operator.count <= 40
    values = torch.tensor([exact[-1], exact[-2], exact[0]])
    torch.testing.assert_close(found.values, values, rtol=1e-9, atol=1e-7)
    torch.testing.assert_close(matrix @ found.vectors, found.vectors * found.values, **EXACT)
    torch.testing.assert_close(found.vectors.T @ found.vectors, torch.eye(3).double(), **EXACT)


@pytest.mark.parametrize(("name", "distinct"), [("degenerate", 3), ("low rank", 3)])
def test_it_ends_when_the_space_is_exhausted(name: str, distinct: int):
    """After as many products as there are distinct eigenvalues, where nothing is left outside of the basis."""
    matrix = with_spectrum(SPECTRA[name])
    found = lanczos(Counted(matrix), matrix[0], seeded(), top=1, tolerance=0)
    assert found.converged and found.products == distinct and found.bounds[0] < 1e-12


def test_a_multiple_eigenvalue_is_found_again_when_there_are_too_few_others():
    matrix = with_spectrum(torch.tensor([2.0, 2.0, 2.0, -1.0, -1.0]).double())
    found = lanczos(Counted(matrix), matrix[0], seeded(), top=3, bottom=2)
    torch.testing.assert_close(found.values, torch.tensor([2.0, 2.0, 2.0, -1.0, -1.0]).double(), **EXACT)
    torch.testing.assert_close(found.vectors.T @ found.vectors, torch.eye(5).double(), **EXACT)
    torch.testing.assert_close(matrix @ found.vectors, found.vectors * found.values, **EXACT)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=25),
    st.integers(1, 12),
    st.integers(0, 2**30),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_a_true_eigenvalue_lies_within_each_bound(values: list[float], limit: int, seed: int, dtype: torch.dtype):
    matrix = with_spectrum(torch.tensor(values).double(), seed)
    exact = torch.linalg.eigvalsh(matrix)
    count = min(2, limit, len(values))
    found = lanczos(Counted(matrix.to(dtype)), matrix[0].to(dtype), seeded(seed), top=count, tolerance=0, limit=limit)
    error = (found.values[:, None] - exact).abs().min(1).values
    # Rounding to single precision moves the matrix itself, by at most its Frobenius norm times the precision.
    rounded = float((matrix.to(dtype).double() - matrix).norm())
    assert (error <= found.bounds + rounded + 1e-15).all()


def test_bounds_are_the_residuals_and_no_looser():
    matrix = with_spectrum(SPECTRA["spread"])
    for limit in (3, 6, 12, 20):
        found = lanczos(Counted(matrix), matrix[0], seeded(), top=2, bottom=1, tolerance=0, limit=limit)
        residuals = (matrix @ found.vectors - found.vectors * found.values).norm(dim=0)
        torch.testing.assert_close(found.bounds, residuals, rtol=1e-6, atol=1e-11)
        assert not found.converged and found.products == limit


def test_bounds_hold_for_the_top_value_while_it_converges():
    matrix = with_spectrum(SPECTRA["decaying"])
    runs = [lanczos(Counted(matrix), matrix[0], seeded(), tolerance=0, limit=k) for k in range(1, 9)]
    errors, bounds = [float(10 - r.values[0]) for r in runs], [float(r.bounds[0]) for r in runs]
    # The first value lies between eigenvalues, and its bound is about the nearest: it is not yet the top one's.
    assert errors[0] > bounds[0]
    assert all(-1e-12 < e <= b for e, b in zip(errors[2:], bounds[2:], strict=True))
    # Of second order in the residual: never above its square over the gap, which is more than 5 here.
    assert all(e <= b**2 / 5 + 1e-12 for e, b in zip(errors[2:], bounds[2:], strict=True))
    assert bounds[-1] < 1e-3 * bounds[2]


def test_it_stops_at_the_tolerance_or_at_the_limit():
    matrix = with_spectrum(SPECTRA["spread"])
    loose, tight = (lanczos(Counted(matrix), matrix[0], seeded(), tolerance=t) for t in (1e-2, 1e-8))
    assert loose.converged and tight.converged and loose.products < tight.products
    assert loose.bounds[0] <= 1e-2 * loose.values[0] and tight.bounds[0] <= 1e-7 * tight.values[0]
    larger = lanczos(Counted(1e6 * matrix), matrix[0], seeded(), tolerance=1e-2)
    assert larger.products == loose.products  # the tolerance is relative
    one_less = lanczos(Counted(matrix), matrix[0], seeded(), tolerance=1e-2, limit=loose.products - 1)
    assert not one_less.converged and one_less.products == loose.products - 1


def test_the_basis_stays_orthonormal_where_three_terms_lose_it():
    values = torch.cat([torch.tensor([1000.0]), torch.linspace(0, 1, 299)])
    basis, _ = torch.linalg.qr(torch.randn(300, 300, generator=seeded(5)))
    matrix = (basis * values) @ basis.T
    matrix = (matrix + matrix.T) / 2
    start = torch.randn(300, generator=seeded())
    krylov = Krylov(Counted(matrix), start, 60, seeded())
    for _ in range(60):
        krylov.step()
    assert (krylov.basis @ krylov.basis.T - torch.eye(60)).abs().max() < 1e-5
    # The control: the recurrence alone, in the same precision, brings the first direction back.
    q, previous, beta, found = start / start.norm(), torch.zeros(300), torch.tensor(0.0), []
    for _ in range(60):
        found.append(q)
        w = matrix @ q - beta * previous
        w -= (w @ q) * q
        previous, beta, q = q, w.norm(), w / w.norm()
    plain = torch.stack(found)
    assert (plain @ plain.T - torch.eye(60)).abs().max() > 0.1


def test_the_same_seed_gives_the_same_bits_and_another_seed_the_same_values():
    matrix = with_spectrum(SPECTRA["spread"])
    one, same, other = (lanczos(Counted(matrix), matrix[0], seeded(s), tolerance=1e-10) for s in (0, 0, 1))
    assert torch.equal(one.values, same.values) and torch.equal(one.vectors, same.vectors)
    assert not torch.equal(one.vectors, other.vectors)
    torch.testing.assert_close(one.values, other.values, **EXACT)


def test_a_matrix_of_one_row_and_more_values_than_rows():
    found = lanczos(lambda v: -3 * v, torch.zeros(1), seeded(), top=1, bottom=1)
    assert found.values.tolist() == [-3.0] and found.products == 1 and found.bounds[0] < 1e-5


def shear(vector: Tensor) -> Tensor:
    return vector + vector.roll(1)


def noisy() -> Callable[[Tensor], Tensor]:
    generator = seeded()
    return lambda v: v * (1 + 0.1 * torch.randn(len(v), generator=generator))


@pytest.mark.parametrize(
    ("operator", "options", "kind", "said"),
    [
        (shear, {}, RunError, "not symmetric: a function in the model has a wrong second derivative"),
        (noisy(), {}, RunError, "another product each time"),
        (lambda v: v / 0, {}, RunError, "product 1 is not finite"),
        (lambda v: v[:2], {}, SpecError, re.escape("shape [2]; allowed: [9]")),
        (lambda v: v, {"top": 0}, SpecError, "top = 0, bottom = 0"),
        (lambda v: v, {"top": 5, "limit": 4}, SpecError, "limit = 4"),
        (lambda v: v, {"bottom": -1}, SpecError, "bottom = -1"),
        (lambda v: v, {"tolerance": -1}, SpecError, "tolerance = -1"),
    ],
)
def test_bad_input_is_said(operator: Callable[[Tensor], Tensor], options: dict[str, int], kind: type, said: str):
    with pytest.raises(kind, match=said):
        lanczos(operator, torch.zeros(9), seeded(), **({"tolerance": 0} | options))


def test_no_vector_to_start_from_is_said():
    with pytest.raises(SpecError, match="start"):
        lanczos(lambda v: v, torch.zeros(0), seeded(), top=1)


def test_a_start_is_where_it_begins():
    """From an eigenvector, one product and that vector; from a vector orthogonal to the top, the top is not found."""
    matrix = with_spectrum(SPECTRA["spread"])
    _, columns = torch.linalg.eigh(matrix)
    found = lanczos(Counted(matrix), matrix[0], seeded(), start=columns[:, 20].float(), tolerance=1e-6)
    assert found.products <= 2 and abs(found.values[0] - SPECTRA["spread"][20]) < 1e-6
    near = lanczos(Counted(matrix), matrix[0], seeded(), start=columns[:, -1] + 0.01 * columns[:, 3])
    assert near.products < lanczos(Counted(matrix), matrix[0], seeded()).products
    assert near.values[0] == pytest.approx(5, rel=1e-5)
    with pytest.raises(SpecError, match="start: has shape"):
        lanczos(Counted(matrix), matrix[0], seeded(), start=torch.zeros(40))
