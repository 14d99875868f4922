"""What the study of the edge of stability reads along a trajectory, on trajectories that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from expunge.numerics.linops import differentiable, hessian
from expunge.studies.edge_of_stability import setup
from expunge.studies.edge_of_stability.sgd import batch_sharpness
from expunge.studies.edge_of_stability.unlearning import FACTORS, GONE, MIXES, unlearned


def batch(count: int = 12) -> setup.Examples:
    return setup.examples(count, torch.Generator().manual_seed(1))


def test_networks_have_no_biases_and_are_the_same_for_the_same_seed() -> None:
    one, two, other = (setup.network("tanh", 8, seed) for seed in (0, 0, 1))
    assert [tuple(p.shape) for p in one.parameters()] == [(8, 196), (8, 8), (8, 8), (8, 8), (10, 8)]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


def test_ratios_are_of_the_hessian_and_the_window_is_read_at_every_step() -> None:
    model, data = setup.network("linear", 6, 0, layers=2), batch()
    parameters = differentiable(model)
    product = hessian(setup.squared, model, parameters, [data])
    dense = torch.stack([product(row) for row in torch.eye(product.size)])
    top = float(torch.linalg.eigvalsh((dense + dense.T) / 2)[-1])
    rate = 2.1 / top
    track = setup.descend(model, data, rate, 20, every=10, window=7)
    assert track.ratios[0] == pytest.approx(rate * top / 2, rel=1e-3) == 1.05
    assert len(track.agreeing) == 20 and track.crossed == 0
    assert track.steps == [0, *range(1, 8), 10, 20]
    assert track.dense == [False, *[True] * 7, False, False]


def test_the_norm_grows_where_the_residual_points_against_the_outputs() -> None:
    model, data = setup.network("tanh", 8, 0), batch()
    track = setup.descend(model, data, 1e-3, 40, every=40)
    assert np.mean(track.agreeing) > 0.9
    # A network that answers too much shrinks; read as growth, it would not agree.
    with torch.no_grad():
        model[-1].weight.mul_(50)
    before = float(model[-1].weight.detach().square().sum())
    track = setup.descend(model, data, 1e-5, 5, every=5)
    assert float(model[-1].weight.detach().square().sum()) < before and np.mean(track.agreeing) == 1


def track(ratios: list[float], norms: list[float] | None = None) -> setup.Track:
    count = len(ratios)
    return setup.Track(list(range(count)), ratios, norms or ratios, [True] * count)


def test_hovering_begins_with_the_first_crossing() -> None:
    assert setup.hovering(track([0.1, 0.2, 1.2, 0.9, 1.0])) == 1.0
    assert setup.hovering(track([0.1, 0.2, 0.3, 0.4])) == pytest.approx(0.35)
    assert setup.upward(track([0.5, 1.1, 0.9, 1.0, 1.2, 0.1])) == 2


def test_phases_of_a_circle() -> None:
    t = np.linspace(0, 6 * np.pi, 600)
    seen = setup.increments(track((1 + 0.1 * np.sin(t)).tolist(), np.sin(t).tolist()), over=4)
    shares = [np.mean(seen["phase"] == p) for p in (1, 2, 3, 4)]
    assert shares == pytest.approx([0.25] * 4, abs=0.02)
    assert np.corrcoef(seen["sharpness"], seen["norm"])[0, 1] == pytest.approx(1.0)
    assert len(setup.increments(track([1.0, 1.1]), over=4)["phase"]) == 0


def test_a_batch_of_everything_is_the_whole() -> None:
    model, data = setup.network("linear", 6, 0, layers=2), batch()
    generator = torch.Generator().manual_seed(0)
    whole, single = batch_sharpness(model, data, 1e-3, data.size, 40, 20, generator)
    assert len(whole) == len(single) == 2
    # The curvature along any direction is at most the largest.
    assert all(0 < s <= w * (1 + 1e-4) for w, s in zip(whole, single, strict=True))


def test_minibatches_are_as_many_as_asked_for_and_cover_an_epoch() -> None:
    data = batch(10)
    found = list(setup.minibatches(data, 4, 5, torch.Generator().manual_seed(0)))
    assert [b.size for b in found] == [4, 4, 2, 4, 4]
    rows = torch.cat([b.inputs for b in found[:3]])
    assert sorted(rows.sum(1).tolist()) == pytest.approx(sorted(data.inputs.sum(1).tolist()))


def test_unlearning_ends_when_the_set_is_gone_and_leaves_the_model_alone() -> None:
    data = batch(32)
    model = setup.network("tanh", 24, 0)
    setup.descend(model, data, 0.1, 600, every=600)
    before = [p.detach().clone() for p in model.parameters()]
    runs = unlearned(model, data, 0.1, 400, torch.Generator().manual_seed(0))
    assert [run.factor for run in runs] == [f for f in FACTORS for _ in MIXES]
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(run.highest > 0 and np.isfinite(run.damage) for run in runs)
    assert GONE == 0.5  # the squared distance of an answer of nothing


def test_both_losses() -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), 10)

    assert float(setup.squared(Fixed(), batch())) == pytest.approx(0.5)
    assert float(setup.cross_entropy(Fixed(), batch())) == pytest.approx(np.log(10))


def test_a_trajectory_that_diverges_says_so_and_hovers_nowhere() -> None:
    found = setup.descend(setup.network("linear", 8, 0), batch(), 1e3, 50, every=1)
    assert found.diverged and setup.hovering(found) == np.inf
    assert np.isfinite(found.ratios).all()
