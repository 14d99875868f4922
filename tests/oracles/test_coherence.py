"""Coherences against closed forms and dense square roots; the noise matrix and Dexter's bounds against the dynamics."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from _dense import of_hessians
from _spectra import seeded
from _steps import gram_of, operator, positive, radius
from torch import Tensor

from expunge.base.errors import SpecError
from expunge.numerics.coherence import (
    coherence,
    coherence_between,
    descent_bounds,
    effective_rank,
    noise_matrix,
    sharpnesses,
    similarities,
)
from expunge.numerics.linearised import Draw, Update, of_gram
from expunge.numerics.stability import mean_square_limit, noise_radius

EXACT = {"rtol": 1e-9, "atol": 1e-11}


def root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


@pytest.mark.parametrize("rank", [1, 3])
def test_similarities_are_those_of_square_roots(rank: int):
    factors, hessians = positive(6, 4, rank, seeded())
    roots = [root(h) for h in hessians]
    expected = torch.stack([torch.stack([torch.linalg.matrix_norm(a @ b) for b in roots]) for a in roots])
    torch.testing.assert_close(similarities(gram_of(factors), rows=rank), expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(
        sharpnesses(gram_of(factors), rows=rank), torch.linalg.eigvalsh(hessians)[:, -1], **EXACT
    )


def sigmas(gram: Tensor, retained: int) -> tuple[float, float, float]:
    s, sharp = similarities(gram), sharpnesses(gram)
    a, b = slice(retained), slice(retained, None)
    return (
        coherence(s[a, a], sharp[a]),
        coherence(s[b, b], sharp[b]),
        coherence_between(s[a, b], sharp[a], sharp[b]),
    )


def test_orthogonal_and_identical_gradients():
    assert sigmas(2 * torch.eye(7), 4) == pytest.approx((1, 1, 0))
    assert sigmas(torch.full((7, 7), 2.0), 4) == pytest.approx((4, 3, math.sqrt(12)))
    # Two groups that share nothing, one per set, each the same within.
    blocks = torch.block_diag(torch.ones(4, 4), 9 * torch.ones(3, 3))
    assert sigmas(blocks, 4) == pytest.approx((4, 3, 0))


def test_the_effective_rank_is_that_of_the_mean():
    factors, hessians = positive(9, 5, 2, seeded())
    s = similarities(gram_of(factors), rows=2)
    values = torch.linalg.eigvalsh(hessians.mean(0))
    traces = hessians.diagonal(dim1=1, dim2=2).sum(1)
    assert effective_rank(s, traces) == pytest.approx(float(values.sum() ** 2 / values.square().sum()))
    assert effective_rank(torch.eye(6).double(), torch.ones(6).double()) == pytest.approx(6)


def test_the_noise_matrix_has_the_radius_of_the_noise():
    """T3: exactly, for curvatures of rank one and batches that each example enters by itself; above it otherwise."""
    factors, _ = positive(12, 6, 1, seeded())
    for bernoulli in (True, False):
        plan = Update(0.3, 0.4, Draw(20, 3, bernoulli), Draw(9, 2, bernoulli))
        gamma = noise_matrix(similarities(gram_of(factors)), 7, plan)
        found, top = noise_radius(of_gram(gram_of(factors), 7), plan), float(torch.linalg.eigvalsh(gamma)[-1])
        assert found.low <= top * (1 + 1e-9)
        assert (found.value == pytest.approx(top, rel=1e-5)) == bernoulli


def test_a_large_noise_matrix_means_that_the_update_leaves():
    _, hessians = positive(7, 5, 1, seeded(3))
    similarity = torch.einsum("iab,jab->ij", hessians, hessians).sqrt()
    for step in (0.1, 1.0, 3.0):
        plan = Update(step, 0.3, Draw(4, 1, True), Draw(3, 1, True))
        top = float(torch.linalg.eigvalsh(noise_matrix(similarity, 4, plan))[-1])
        assert top <= radius(operator(hessians, plan)) * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_no_set_stays_above_dexters_bound(seed: int):
    generator = seeded(seed)
    factors, hessians = positive(12, 2 + seed % 5, 1, generator)
    draw = Draw(12, 1 + seed % 3, True)
    gram = gram_of(factors)
    sigma = coherence(similarities(gram), sharpnesses(gram))
    bounds = descent_bounds(float(torch.linalg.eigvalsh(hessians.mean(0))[-1]), sigma, draw)
    # A forget set of weight 0: plain descent.
    both = of_hessians(torch.cat([hessians, torch.eye(len(hessians[0])).double()[None]]), 12)
    limit = mean_square_limit(both, Update(0.1, 0.0, draw, Draw(1, 1)))
    assert 0 < limit <= bounds.leaves_above * (1 + 1e-9)


@pytest.mark.parametrize(("n", "batch", "sigma"), [(20, 2, 5), (30, 6, 3)])
def test_the_set_that_dexter_constructs_stays_up_to_the_other_bound(n: int, batch: int, sigma: int):
    """Sigma examples share one direction, the others have one each; all are equally sharp."""
    gram = torch.block_diag(torch.ones(sigma, sigma), torch.eye(n - sigma)).double() * n / sigma
    assert coherence(similarities(gram), sharpnesses(gram)) == pytest.approx(sigma)
    bounds = descent_bounds(1.0, sigma, Draw(n, batch, True))
    rest = of_gram(torch.block_diag(gram, torch.ones(1, 1).double()), n)
    limit = mean_square_limit(rest, Update(0.1, 0.0, Draw(n, batch, True), Draw(1, 1)))
    assert limit == pytest.approx(bounds.may_stay_below, rel=1e-6)
    assert limit < bounds.leaves_above


def test_whole_batches_are_bounded_by_the_mean_alone():
    bounds = descent_bounds(4.0, 3.0, Draw(9, 9))
    assert bounds.leaves_above == pytest.approx(0.5) and bounds.may_stay_below == pytest.approx(0.5)


def test_a_set_that_does_not_bend_has_no_coherence():
    nothing = torch.zeros(3, 3)
    assert math.isnan(coherence(nothing, torch.zeros(3)))
    assert math.isnan(coherence_between(nothing, torch.ones(3), torch.zeros(3)))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: similarities(torch.ones(2, 3)), "gram: has shape"),
        (lambda: sharpnesses(torch.ones(3, 3), rows=2), "gram: has shape"),
        (lambda: similarities(torch.ones(2, 2) / 0), "not finite"),
        (lambda: noise_matrix(torch.eye(2), 2, Update(0.1, 0.5, Draw(2, 1), Draw(1, 1))), "retained: 2 of 2"),
        (lambda: descent_bounds(0.0, 1.0, Draw(2, 1)), "descent_bounds: sharpness = 0.0"),
        (lambda: descent_bounds(1.0, 2.1, Draw(2, 1)), "sigma = 2.1"),
        (lambda: descent_bounds(1.0, 0.9, Draw(2, 1)), "sigma = 0.9"),
    ],
)
def test_bad_input_is_said(call: Callable[[], object], said: str):
    with pytest.raises(SpecError, match=said):
        call()
