"""The second moment of a step against the mean over all batches that can be drawn, closed forms, and simulation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from _dense import of_hessians
from _spectra import seeded
from _steps import gram_of, operator, positive, radius, steps, weights
from torch import Tensor

from expunge.base.errors import RunError, SpecError
from expunge.numerics._perron import spectral_radius
from expunge.numerics.linearised import Curvatures, Draw, Update, of_gram
from expunge.numerics.stability import (
    critical_ascent_weight,
    growth_rate,
    growth_steps,
    mean_limit,
    mean_radius,
    mean_square,
    mean_square_limit,
    mean_square_radius,
    noise_radius,
    one_step_bound,
)

# Sums over a few hundred batches of products of small matrices in float64.
EXACT = {"rtol": 1e-9, "atol": 1e-11}


def update(step: float = 0.05, ascent_weight: float = 0.3, *, bernoulli: bool = False, momentum: float = 0.0) -> Update:
    """4 retained examples in batches of 2, 3 forgotten ones one by one."""
    return Update(step, ascent_weight, Draw(4, 2, bernoulli), Draw(3, 1, bernoulli), momentum)


BOTH = pytest.mark.parametrize("bernoulli", [False, True])
MOMENTA = pytest.mark.parametrize("momentum", [0.0, 0.7])


@BOTH
@MOMENTA
@pytest.mark.parametrize("rank", [1, 2])
def test_a_product_is_the_mean_over_all_batches(bernoulli: bool, momentum: float, rank: int):
    _, hessians = positive(7, 3, rank, seeded())
    plan = update(bernoulli=bernoulli, momentum=momentum)
    apply, like = mean_square(of_hessians(hessians, 4), plan)
    matrix = torch.randn(like.shape, generator=seeded(1)).double()
    matrix = matrix @ matrix.T
    expected = sum(chance * step @ matrix @ step.T for chance, step in steps(hessians, plan))
    torch.testing.assert_close(apply(matrix), expected, **EXACT)


@BOTH
@MOMENTA
@pytest.mark.parametrize("size", [3, 9])
def test_the_radius_from_the_gram_matrix_is_that_of_the_dense_operator(bernoulli: bool, momentum: float, size: int):
    """With fewer weights than gradients, and with more, where the whole space has the eigenvalue 1 outside."""
    factors, hessians = positive(7, size, 1, seeded(size))
    for step in (0.01, 0.3):
        plan = update(step, bernoulli=bernoulli, momentum=momentum)
        exact = radius(operator(hessians, plan))
        found = mean_square_radius(of_gram(gram_of(factors), 4), plan)
        assert exact > 1
        assert found.low <= exact * (1 + 1e-9) and exact <= found.high * (1 + 1e-9)
        assert found.value == pytest.approx(exact, rel=1e-5)
        assert found.products < 2000


@BOTH
def test_blocks_of_a_gram_matrix_are_dense_curvatures(bernoulli: bool):
    factors, hessians = positive(7, 5, 2, seeded())
    plan = update(bernoulli=bernoulli)
    from_gram = mean_square_radius(of_gram(gram_of(factors), 4, rows=2), plan)
    assert from_gram.value == pytest.approx(radius(operator(hessians, plan)), rel=1e-5)
    assert mean_radius(of_gram(gram_of(factors), 4, rows=2), plan) == pytest.approx(
        mean_radius(of_hessians(hessians, 4), plan), rel=1e-9
    )


@BOTH
@MOMENTA
def test_simulated_weights_have_that_second_moment(bernoulli: bool, momentum: float):
    """20,000 chains of six steps from one point; each entry within five standard errors."""
    _, hessians = positive(7, 3, 1, seeded(2))
    plan = update(0.1, bernoulli=bernoulli, momentum=momentum)
    generator, chains = seeded(3), 20_000
    tables = [(torch.tensor([p for p, _ in rows]), torch.stack([w for _, w in rows])) for rows in (
        list(weights(plan.retain)), list(weights(plan.forget)))]  # fmt: skip
    w = previous = torch.ones(chains, 3).double()
    for _ in range(6):
        retain, forget = (table[torch.multinomial(p, chains, True, generator=generator)] for p, table in tables)
        signed = torch.cat([(1 - plan.ascent_weight) * retain, -plan.ascent_weight * forget], 1)
        moved = torch.einsum("ci,iab,cb->ca", signed, hessians, w)
        w, previous = w - plan.step * moved + momentum * (w - previous), w
    products = w[:, :, None] * w[:, None]
    apply, like = mean_square(of_hessians(hessians, 4), plan)
    moment = torch.ones_like(like)
    for _ in range(6):
        moment = apply(moment)
    error = products.std(0) / chains**0.5
    # Dense curvatures keep the coordinates of the weights.
    assert ((products.mean(0) - moment[:3, :3]).abs() < 5 * error).all()
    assert float(error.max()) < 0.05 * float(moment[:3, :3].max())


@pytest.mark.parametrize("bernoulli", [False, True])
def test_orthogonal_gradients_do_not_mix(bernoulli: bool):
    """Direction i: (1 - step a)^2 + step^2 (variance), with a = +- weight * |g|^2 / n."""
    lengths = torch.tensor([1.0, 2.0, 0.5, 1.5, 1.2, 0.7, 0.4]).double()
    plan = update(0.2, bernoulli=bernoulli)
    found = mean_square_radius(of_gram(torch.diag(lengths), 4), plan)
    growths = []
    for place, length in enumerate(lengths.tolist()):
        n, b, u = (4, 2, 0.7) if place < 4 else (3, 1, -0.3)
        # An example is in the batch with probability B / n in either scheme, and has the weight u / B then.
        inside, outside = (1 - 0.2 * u * length / b) ** 2, 1.0
        growths.append(b / n * inside + (1 - b / n) * outside)
    assert found.value == pytest.approx(max(growths), rel=1e-6)
    assert mean_radius(of_gram(torch.diag(lengths), 4), plan) == pytest.approx(1 + 0.2 * 0.3 * 1.2 / 3)


def test_identical_gradients_are_one_direction():
    gram, h = torch.full((7, 7), 1.5).double(), 1.5
    exactly, alone = (mean_square_radius(of_gram(gram, 4), update(0.4, bernoulli=b)) for b in (False, True))
    mean = 1 - 0.4 * (0.7 - 0.3) * h
    assert exactly.value == pytest.approx(mean**2)  # every batch has the same mean
    assert alone.value == pytest.approx(mean**2 + (0.4 * h) ** 2 * (0.7**2 * (1 / 2 - 1 / 4) + 0.3**2 * (1 - 1 / 3)))
    assert critical_ascent_weight(of_gram(gram, 4)) == pytest.approx(0.5)


def test_whole_batches_have_no_noise():
    factors, _ = positive(7, 5, 1, seeded())
    for bernoulli in (False, True):
        plan = Update(0.1, 0.3, Draw(4, 4, bernoulli), Draw(3, 3, bernoulli))
        curvatures = of_gram(gram_of(factors), 4)
        assert noise_radius(curvatures, plan).high < 1e-12
        assert mean_square_radius(curvatures, plan).value == pytest.approx(mean_radius(curvatures, plan) ** 2, rel=1e-5)


def test_a_part_of_a_set_stands_for_all_of_it():
    """Each example four times over is the same distribution: the curvatures at hand are a quarter of the set."""
    factors, _ = positive(7, 4, 1, seeded())
    again = torch.cat([factors[:4].repeat(4, 1, 1), factors[4:].repeat(4, 1, 1)])
    for bernoulli in (False, True):
        plan = Update(0.1, 0.3, Draw(16, 2, bernoulli), Draw(12, 3, bernoulli))
        part, whole = (mean_square_radius(of_gram(gram_of(f), n), plan) for f, n in ((factors, 4), (again, 16)))
        assert part.value == pytest.approx(whole.value, rel=1e-7)


@pytest.mark.parametrize("seed", range(40))
def test_the_radius_lies_between_its_parts_and_one_step(seed: int):
    """T2, on forty draws of eight weights and 28 examples."""
    generator = seeded(seed)
    _, hessians = positive(28, 8, 1 + seed % 3, generator)
    ascent_weight, step = (
        float(torch.rand((), generator=generator)),
        10 ** float(torch.rand((), generator=generator) * 2 - 3),
    )
    plan = Update(step, ascent_weight, Draw(20, 3, bool(seed % 2)), Draw(8, 2, bool(seed % 2)))
    curvatures = of_hessians(hessians, 20)
    found = mean_square_radius(curvatures, plan)
    assert found.high >= mean_radius(curvatures, plan) ** 2 * (1 - 1e-9)
    assert found.high >= noise_radius(curvatures, plan).low * (1 - 1e-9)
    assert found.low <= one_step_bound(curvatures, plan) * (1 + 1e-9)


def test_more_weights_than_examples_bend_down_once_per_forgotten_one():
    """T5: as many negative eigenvalues as forget gradients, at any mix; the mean then leaves at every step size."""
    factors, _ = positive(40, 60, 1, seeded())
    curvatures = of_gram(gram_of(factors), 30)
    for ascent_weight in (1e-4, 0.1, 0.5):
        plan = Update(1e-3, ascent_weight, Draw(30, 3), Draw(10, 2))
        assert int((torch.linalg.eigvalsh(curvatures.average(ascent_weight)) < 0).sum()) == 10
        assert mean_limit(curvatures, plan) == mean_square_limit(curvatures, plan) == 0
        assert mean_radius(curvatures, plan) > 1
    assert critical_ascent_weight(curvatures) == 0


def test_the_mean_leaves_above_the_critical_ascent_weight():
    """T4, with more examples than weights."""
    factors, _ = positive(40, 12, 1, seeded(4))
    curvatures = of_gram(gram_of(factors), 30)
    critical = critical_ascent_weight(curvatures)
    assert 0 < critical < 1
    for factor, sign in ((1 - 1e-3, 1), (1 + 1e-3, -1)):
        least = float(torch.linalg.eigvalsh(curvatures.average(factor * critical))[0])
        assert 1e-5 < sign * least < 1e-2


@MOMENTA
def test_the_mean_leaves_above_its_limit(momentum: float):
    factors, hessians = positive(40, 5, 1, seeded())
    curvatures = of_gram(gram_of(factors), 30)
    plan = Update(0.1, 0.05, Draw(30, 3), Draw(10, 2), momentum)
    limit = mean_limit(curvatures, plan)
    average = 0.95 * hessians[:30].mean(0) - 0.05 * hessians[30:].mean(0)
    unit = torch.eye(5).double()
    for factor, leaves in ((0.999, False), (1.001, True)):
        upper = torch.cat([(1 + momentum) * unit - factor * limit * average, -momentum * unit], 1)
        exact = radius(torch.cat([upper, torch.cat([unit, 0 * unit], 1)]))
        assert (exact > 1) == leaves
        assert mean_radius(curvatures, replace(plan, step=factor * limit)) == pytest.approx(exact, rel=1e-9)


@BOTH
@MOMENTA
@pytest.mark.parametrize("ascent_weight", [0.0, 0.05])
def test_the_second_moment_leaves_above_its_limit(bernoulli: bool, momentum: float, ascent_weight: float):
    factors, hessians = positive(7, 3, 2, seeded(1))
    plan = update(ascent_weight=ascent_weight, bernoulli=bernoulli, momentum=momentum)
    curvatures = of_gram(gram_of(factors), 4, rows=2)
    limit = mean_square_limit(curvatures, plan)
    assert 0 < limit < mean_limit(curvatures, plan)
    for factor, leaves in ((0.98, False), (1.02, True)):
        exact = radius(operator(hessians, replace(plan, step=factor * limit)))
        assert (exact > 1) == leaves
    assert radius(operator(hessians, replace(plan, step=limit))) == pytest.approx(1, abs=1e-6)


def test_there_is_no_limit_where_nothing_bends():
    curvatures = of_gram(torch.diag(torch.tensor([0.0, 0.0, 1.0])), 2)
    plan = Update(0.1, 0.0, Draw(2, 1), Draw(1, 1))
    assert mean_limit(curvatures, plan) == mean_square_limit(curvatures, plan) == math.inf


def test_steps_to_grow():
    assert growth_steps(math.log(1.1), 1.1**7) == pytest.approx(7)
    assert growth_steps(0.0, 10) == growth_steps(-0.5, 10) == math.inf


@BOTH
@MOMENTA
@pytest.mark.parametrize("step", [1e-4, 0.05, 1.0])
def test_the_rate_is_that_of_the_dense_operator_however_slow(bernoulli: bool, momentum: float, step: float):
    factors, hessians = positive(7, 3, 1, seeded(3))
    plan = update(step, bernoulli=bernoulli, momentum=momentum)
    exact = math.log(radius(operator(hessians, plan))) / 2
    assert growth_rate(of_gram(gram_of(factors), 4), plan) == pytest.approx(exact, rel=1e-5)


def test_the_rate_of_whole_batches_is_that_of_the_mean():
    factors, _ = positive(7, 9, 1, seeded())
    curvatures, plan = of_gram(gram_of(factors), 4), Update(0.01, 0.3, Draw(4, 4), Draw(3, 3), 0.7)
    assert growth_rate(curvatures, plan) == pytest.approx(math.log(mean_radius(curvatures, plan)), rel=1e-6)


def test_a_mean_that_swings_shrinks_by_the_root_of_the_momentum():
    curvatures = of_gram(torch.ones(7, 7), 4)
    plan = Update(0.5, 0.0, Draw(4, 2), Draw(3, 1), 0.81)
    assert mean_radius(curvatures, plan) == pytest.approx(0.9)


def test_bounds_hold_however_early_power_iteration_ends():
    """And without an inner product, where only the two of Collatz and Wielandt are left."""
    _, hessians = positive(7, 3, 1, seeded(6))
    plan = update(0.3)
    exact = radius(operator(hessians, plan))
    apply, like = mean_square(of_hessians(hessians, 4), plan)
    for weight in (None, torch.ones_like(like)):
        runs = [spectral_radius(apply, like, weight=weight, tolerance=0, limit=k) for k in (1, 2, 9, 17, 33)]
        assert all(run.low <= exact * (1 + 1e-12) and exact <= run.high * (1 + 1e-12) for run in runs)
        assert all(a.high >= b.high and a.low <= b.low for a, b in itertools.pairwise(runs))
        assert runs[0].high > 1.01 * exact > runs[-1].high


def test_a_map_that_ends_at_zero_and_one_that_has_no_end():
    like = torch.eye(2).double()
    assert spectral_radius(lambda m: 0 * m, like).high == 0
    with pytest.raises(RunError, match="product 1 is not finite"):
        spectral_radius(lambda m: m / 0, like)


def plan_with(**changes: Any) -> Callable[[], object]:
    given = {"step": 0.1, "ascent_weight": 0.5, "retain": Draw(4, 2), "forget": Draw(3, 1)}
    return lambda: Update(**(given | changes))


def gram(matrix: Tensor, retained: int = 1, rows: int = 1) -> Callable[[], object]:
    return lambda: of_gram(matrix, retained, rows=rows)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Draw(4, 5), "batch: found 5; allowed: 1 to the 4 examples"),
        (lambda: Draw(4, 0), "batch: found 0"),
        (plan_with(ascent_weight=1.01), "ascent_weight: found 1.01; allowed: 0 to 1"),
        (plan_with(ascent_weight=-0.1), "ascent_weight: found -0.1"),
        (plan_with(ascent_weight=math.nan), "ascent_weight: found nan"),
        (plan_with(step=0.0), "step: found 0.0"),
        (plan_with(step=math.inf), "step: found inf"),
        (plan_with(momentum=1.0), "momentum: found 1.0"),
        (gram(torch.eye(3)[:2]), r"gram: has shape \[2, 3\]"),
        (gram(torch.eye(3), rows=2), "with 2 rows per example"),
        (gram(torch.eye(3) * math.nan), "gram: is not finite"),
        (gram(torch.diag(torch.tensor([1.0, -1.0]))), "eigenvalues from -1 to 1"),
        (gram(torch.zeros(2, 2)), "eigenvalues from 0 to 0"),
        (gram(torch.eye(3), retained=3), "3 retained"),
        (gram(torch.eye(3), retained=0), "0 retained"),
        (lambda: Curvatures(torch.ones(3, 2), 1), "curvatures"),
        (
            lambda: one_step_bound(of_gram(torch.eye(2), 1), plan_with(momentum=0.5)()),
            "momentum: the bound is for steps without momentum",
        ),  # type: ignore[arg-type]
    ],
)
def test_bad_input_is_said(call: Callable[[], object], said: str):
    with pytest.raises(SpecError, match=said):
        call()
