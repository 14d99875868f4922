"""What the study of linear stability simulates and trains, held against closed forms and autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from expunge.numerics.linearised import Draw, Update, of_gram
from expunge.numerics.stability import mean_radius
from expunge.studies.stability import grids, snr
from expunge.studies.stability.roles import MIX, RETAIN, _vectors, growth


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize(("step", "diverges"), [(1.9, False), (2.1, True)])
def test_in_full_batches_on_one_axis_two_over_the_curvature_is_the_edge(step: float, diverges: bool) -> None:
    vectors = torch.ones(6, 1, dtype=torch.float64)
    update = Update(step, 0.0, Draw(4, 4), Draw(2, 2))
    found = grids.chains_diverge(vectors, 4, update, steps=200, chains=5, generator=generator())
    assert found.tolist() == [diverges] * 5


def test_ascent_alone_leaves_and_batches_are_as_large_as_they_are_said_to_be() -> None:
    vectors = torch.eye(6, dtype=torch.float64)
    update = Update(0.5, 1.0, Draw(4, 2), Draw(2, 1))
    # Each forget axis grows by 1.5 in the steps in which it is drawn, which is every other one.
    assert grids.chains_diverge(vectors, 4, update, 200, 20, generator()).all()
    assert not grids.chains_diverge(vectors, 4, update, 4, 20, generator()).any()
    chosen = grids._chosen(50, 7, 3, generator())
    assert (chosen.sum(1) == 3).all() and set(chosen.unique().tolist()) == {0.0, 1.0}
    assert (chosen.mean(0) > 0.1).all()


def test_planes_hold_cells_in_which_the_two_tests_differ() -> None:
    cells = list(grids.planes(steps=100, chains=10, across=5, up=3, seed=0))
    assert {c.plane for c in cells} == {"step and mix", "batch and coherence"}
    assert any(c.mean and not c.exact for c in cells) and not any(c.exact and not c.mean for c in cells)
    assert any(c.stable for c in cells) and not all(c.stable for c in cells)


def test_the_map_has_all_three_regions() -> None:
    stays, leaves, may_stay = grids.dexter_map(steps=50, chains=4, seed=0)
    assert leaves.any() and may_stay.any() and not (leaves & may_stay).any() and not (leaves | may_stay).all()
    assert stays.any() and not stays.all()


def test_slopes_are_those_of_autograd() -> None:
    filters = torch.randn(2, 3, 5, generator=generator(), dtype=torch.float64, requires_grad=True)
    x = torch.randn(4, 2, 5, generator=generator(), dtype=torch.float64)
    net = snr.Net(filters)
    found = net.slopes(x)
    for i, output in enumerate(net.outputs(x)):
        (true,) = torch.autograd.grad(output, filters, retain_graph=True)
        torch.testing.assert_close(found[i], true.flatten(), rtol=1e-12, atol=1e-12)


def test_signal_and_noise_are_what_they_are_called() -> None:
    x, y = snr.sample(0.7, 0.1, snr.Scale(400, 80, 50), generator())
    torch.testing.assert_close(x[:, 0, 0], 0.7 * y)
    assert (x[:, 0, 1:] == 0).all() and (x[:, 1, 0] == 0).all()
    assert float(x[:, 1, 1:].std()) == pytest.approx(0.1, rel=0.05)


def test_a_trained_network_leaves_later_from_a_smaller_push() -> None:
    found = snr.look(0.4, 1 / math.sqrt(60), snr.Scale(20, 4, 60, training=4000), generator())
    assert found.residual <= 1e-8 and found.rate > 0
    assert all(steps > 0 for steps in found.steps.values())
    assert found.steps["tuned"] <= found.steps["normalised"]
    assert 1 <= found.coherence <= 20


def linear_rate(vectors: Tensor) -> float:
    gram = vectors @ vectors.T
    step = 1 / float(torch.linalg.eigvalsh(gram[:RETAIN, :RETAIN])[-1] / RETAIN)
    count = len(vectors) - RETAIN
    return math.log(mean_radius(of_gram(gram, RETAIN), Update(step, MIX, Draw(RETAIN, RETAIN), Draw(count, count))))


@pytest.mark.parametrize("kind", ["low", "forget", "apart", "between"])
def test_simulated_growth_is_that_of_the_sharpest_escape(kind: str) -> None:
    vectors = _vectors(kind, torch.Generator().manual_seed(5))  # type: ignore[arg-type]
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors), dtype=torch.float64))
    assert growth(kind, 4000, 5) == pytest.approx(linear_rate(vectors), rel=1e-3)  # type: ignore[arg-type]


def test_shared_directions_are_shared_by_whom_they_should() -> None:
    inner = {}
    for kind in ("low", "forget", "apart", "between"):
        vectors = _vectors(kind, generator())  # type: ignore[arg-type]
        gram = vectors @ vectors.T
        inner[kind] = tuple(
            float(block.mean()) for block in (gram[:RETAIN, :RETAIN], gram[RETAIN:, RETAIN:], gram[:RETAIN, RETAIN:])
        )
    assert inner["forget"][1] > 0.5 > inner["low"][1] and inner["forget"][0] < 0.1
    assert inner["apart"][0] > 0.5 and inner["apart"][2] < 0.1 and inner["between"][2] > 0.5
