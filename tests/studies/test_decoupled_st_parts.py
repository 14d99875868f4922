"""Parts of the study `decoupled_st`: nets side by side, exact likelihood, gates, sprites, and the choice of pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from expunge.numerics.estimators import DecoupledST, DecoupledSTGS, all_choices
from expunge.studies.decoupled_st import nets, setup, study
from expunge.studies.decoupled_st.fidelity import diagnoses, online
from expunge.studies.decoupled_st.images import images, sprites
from expunge.studies.decoupled_st.setup import CELLS, COARSE, DIAGONAL, EXPERIMENTS, FINE, GRID, SideBySide, Sizes

SCALE = Sizes(hidden=8, images=100, tests=30, steps=3)


def test_cells_are_a_grid_and_a_finer_diagonal() -> None:
    assert len(GRID) == 16 and len(DIAGONAL) == 7 and len(CELLS) == 19 == len(set(CELLS))
    assert set(DIAGONAL) <= set(CELLS) and set(COARSE) <= set(FINE) and FINE[3] == 1.0
    assert np.allclose(np.diff(np.log2(COARSE)), 1, atol=1e-2)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_net_side_by_side_starts_and_learns_as_it_does_alone(name: str) -> None:
    """Identical cells stay identical only in what is deterministic: weights at the start and the batches."""
    experiment = EXPERIMENTS[name]
    net = experiment.net(8, 60, 20)
    pair = SideBySide(net, [(0.5, 1.0), (2.0, 1.0)], [0.01, 0.01], 3, experiment.version)
    alone = SideBySide(net, [(2.0, 1.0)], [0.01], 3, experiment.version)
    assert torch.equal(pair.flat[1], alone.flat[0]) and torch.equal(pair.flat[0], pair.flat[1])
    before = pair.flat.detach().clone()
    pair.train(2)
    alone.train(2)
    assert torch.equal(pair.batches.get_state(), alone.batches.get_state())
    moved = (pair.flat.detach() - before).abs().amax(1)
    assert (moved > 0).all() and moved.max() < 0.04
    assert pair.read()["loss"].shape == (2,) and pair.read()["loss"].isfinite().all()


def test_rates_are_each_nets_own() -> None:
    experiment = EXPERIMENTS["VAE"]
    pair = SideBySide(experiment.net(8, 60, 20), [(1.0, 1.0)] * 2, [0.01, 0.1], 3, experiment.version)
    before = pair.flat.detach().clone()
    pair.train(1)
    slow, quick = (pair.flat.detach() - before).abs().amax(1)
    # Adam's first step is its rate for every weight that has a gradient.
    assert float(slow) == pytest.approx(0.01, rel=1e-3) and float(quick) == pytest.approx(0.1, rel=1e-3)


def test_generation_is_the_exact_likelihood() -> None:
    """Against a plain sum over all codes, in double precision."""
    net = nets.CategoricalVAE(images("digits", 20, 4), 8, code=3, categories=3)
    weights = {name: value[None] for name, value in net.weights(torch.Generator().manual_seed(1)).items()}
    total = torch.zeros(4, dtype=torch.float64)
    for state in all_choices(3, 3, like=net.images.test):
        logits = net.decode(weights, state.flatten()[None, None])[0, 0].double()
        p = torch.sigmoid(logits)
        pixels = net.images.test.double()
        total += (p.log() * pixels + (1 - p).log() * (1 - pixels)).sum(1).exp() / 27
    assert float(net.surprise(weights)[0]) == pytest.approx(float(-total.log().mean()), rel=1e-5)


def test_the_bound_is_above_the_exact_likelihood() -> None:
    experiment = EXPERIMENTS["VAE"]
    vae = SideBySide(experiment.net(8, 60, 20), [(1.0, 1.0)], [0.01], 3, experiment.version)
    vae.train(20)
    reading = vae.read()
    assert float(reading["loss"]) > float(reading["generation"])
    assert float(reading["loss"]) >= float(reading["reconstruction"])


def test_gates_are_the_sixteen_functions() -> None:
    bits = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    a, b = bits.T
    values = torch.stack([torch.ones(4), a, b, a * b], 1) @ nets.FUNCTIONS.T
    assert ((values == 0) | (values == 1)).all() and len({tuple(column.tolist()) for column in values.T}) == 16
    assert values[:, 0b1000].tolist() == (a * b).tolist() and values[:, 0b0110].tolist() == (a != b).float().tolist()


def test_sprites_have_the_shape_that_their_label_says() -> None:
    pixels, labels = sprites(300, torch.Generator().manual_seed(0))
    assert pixels.shape == (300, 144) and ((pixels == 0) | (pixels == 1)).all()
    assert set(labels.tolist()) == {0, 1, 2} and int(pixels.sum(1).min()) >= 9 and int(pixels.sum(1).max()) <= 42


def test_pixels_of_a_loss_by_codes() -> None:
    net = nets.CategoricalVAE(images("digits", 20, 4), 8, code=3, categories=3)
    weights = {name: value[None] for name, value in net.weights(torch.Generator().manual_seed(1)).items()}
    pixels = net.images.train[:5]
    logits, loss = net.by_codes(weights, pixels)
    codes = F.one_hot(torch.randint(0, 3, (2, 5, 3), generator=torch.Generator().manual_seed(2)), 3).float()
    direct = nets.pixel_loss(net.decode(weights, codes.flatten(-2).flatten(0, 1)[None])[0], pixels.repeat(2, 1))
    assert logits.shape == (5, 3, 3)
    torch.testing.assert_close(loss(codes).flatten(), direct)


def test_pairs_are_chosen_on_their_own_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known losses: the rate by the first seeds, the pair by the others; a net that diverged is never chosen."""
    asked = []

    def known(name: str, cells: list[setup.Cell], rates: list[float], seed: int, scale: Sizes) -> nets.Readings:
        asked.append(seed)
        distance = {cell: abs(math.log(cell[0] / 0.707)) + abs(math.log(cell[1] / 1.414)) for cell in CELLS}
        losses = [distance[cell] + (rate != 1e-2) + 1 for cell, rate in zip(cells, rates, strict=True)]
        losses[CELLS.index((0.354, 2.828))] = math.nan
        return {"loss": torch.tensor(losses) + 0.1 * (seed % 2)}

    monkeypatch.setattr(setup, "final", known)
    chosen = setup.choose("VAE", SCALE, (100, 101), (102, 103))
    assert asked == [100, 101, 102, 103]
    assert chosen["off"] == (0.707, 1.414) and chosen["diagonal"] in ((0.707, 0.707), (1.0, 1.0), (1.414, 1.414))
    assert set(chosen["rates"]) == {1e-2}
    # Four losses that differ by 0.1 between odd and even seeds.
    assert chosen["scatter"] == pytest.approx(np.std([0, 0.1, 0, 0.1], ddof=1), rel=1e-4)


def test_what_claims_are_computed_from() -> None:
    """A bowl around (0.707, 1.414): the gain is positive, the lower forward temperature wins, one step costs less."""
    losses = {(f, b): 10 + math.log2(f / 0.707) ** 2 + math.log2(b / 1.414) ** 2 for f, b in CELLS}
    diagonal, off = study.pairs({"diagonal": [1.0, 1.0], "off": [0.707, 1.414]})
    assert study.gain(losses, diagonal, off) == pytest.approx(0.5 / 10.5, rel=1e-3)
    assert study.side(losses) > 0 > study.side({(f, b): loss for (b, f), loss in losses.items()})
    # Equal pair: factor 2 costs 2 of 10.5; different pair: 1 of 10.
    assert study.sensitivity(losses, diagonal, off) == pytest.approx(2 / 10.5 - 1 / 10, rel=1e-2)
    assert study.variation(dict.fromkeys(CELLS, 1.0)) == 0


def test_online_temperatures_are_those_of_the_largest_cosine() -> None:
    loss, temperatures = online(3, 0.01, SCALE, 2, 8)
    assert math.isfinite(loss) and len(temperatures) == 2 and set(temperatures) <= set(FINE)
    vae = SideBySide(EXPERIMENTS["VAE"].net(8, 100, 30), [(1.0, 1.0)], [0.01], 3, DecoupledSTGS)
    found = diagnoses(vae, [(1.0, 1.0), (2.0, 1.0)], 64, 0)
    # The law of the exact gradient is the forward temperature's.
    assert found[1.0, 1.0].exact != found[2.0, 1.0].exact and found[1.0, 1.0].gap is not None


def test_versions_differ_only_in_noise() -> None:
    assert {e.version for e in EXPERIMENTS.values()} == {DecoupledST, DecoupledSTGS}
    for name in setup.PRIMARY:
        assert EXPERIMENTS[name].version is DecoupledSTGS
        assert EXPERIMENTS[f"{name}, version 2"].make is EXPERIMENTS[name].make
