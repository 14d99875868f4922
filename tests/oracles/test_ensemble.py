"""Nets trained side by side against the loop that trains them one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from expunge.base.errors import RunError, SpecError
from expunge.core.case import train_model
from expunge.core.data import Data
from expunge.core.decisions import loss
from expunge.data.digits import Digits
from expunge.models.mlp import MLP
from expunge.train.ensemble import Ensemble, train_ensemble
from expunge.train.training import TrainedRecipe, Training

SEEDS = (3, 1, 4)


def doubled(data: Data) -> Data:
    return replace(data, inputs=data.inputs.double())


class Double(MLP):
    def __call__(self, data: Data) -> nn.Sequential:
        return super().__call__(data).double()


def losses(net: nn.Module, data: Data, ids: Tensor) -> float:
    with torch.no_grad():
        return float(loss(data.objective.decisions(net, data.batch(ids))))


# 61 = 3 * 20 + 1: the last batch of an epoch, of one example, is left out.
@pytest.mark.parametrize("size", [64, 61])
@pytest.mark.parametrize("how", [{}, {"optimizer": "sgd"}, {"optimizer": "adamw", "weight_decay": 0.1, "final": 0.0}])
def test_every_net_is_that_of_the_loop(how: dict[str, object], size: int) -> None:
    data = doubled(Digits(train=size, test=30)())
    recipe = TrainedRecipe(Double(widths=[12, 7]), Training(epochs=4, batch_size=20, learning_rate=0.01, **how), data)  # type: ignore[arg-type]
    found = train_ensemble(recipe, data, data.train, SEEDS)
    for seed, net in zip(SEEDS, found, strict=True):
        alone = train_model(recipe, data, data.train, seed)
        assert not net.training
        # Float64 with another order of summation, over at most 16 steps; Adam divides by small gradients.
        assert losses(net, data, data.train) == pytest.approx(losses(alone, data, data.train), rel=1e-9)
        for ours, theirs in zip(net.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_every_net_may_have_examples_of_its_own() -> None:
    data = doubled(Digits(train=90, test=30)())
    recipe = TrainedRecipe(Double(widths=[12]), Training(epochs=3, batch_size=20, learning_rate=0.01, final=0.0), data)
    ids = torch.stack([data.train[:50], data.train[40:], data.train[::2].repeat(2)[:50]])
    for seed, own, net in zip(SEEDS, ids, train_ensemble(recipe, data, ids, SEEDS), strict=True):
        alone = train_model(recipe, data, own, seed)
        # As above.
        for ours, theirs in zip(net.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_nets_differ_and_learn() -> None:
    data = Digits(train=300, test=100)()
    nets = train_ensemble(
        TrainedRecipe(MLP(widths=[32]), Training(epochs=15, learning_rate=0.01), data), data, data.train, SEEDS
    )
    found = [losses(net, data, data.train) for net in nets]
    assert len(set(found)) == 3 and max(found) < 1.0


def test_the_global_state_is_left_alone() -> None:
    data = Digits(train=40, test=10)()
    before = torch.get_rng_state()
    recipe = TrainedRecipe(MLP(widths=[4], dropout=0.5), Training(epochs=1), data)
    train_ensemble(recipe, data, data.train, SEEDS)
    assert torch.equal(before, torch.get_rng_state())


def test_what_it_cannot_do_is_refused() -> None:
    data = Digits(train=40, test=10)()
    with pytest.raises(SpecError, match="buffers"):
        Ensemble([nn.BatchNorm1d(3)])
    with pytest.raises(SpecError, match="clip"):
        train_ensemble(TrainedRecipe(MLP(), Training(clip=1.0), data), data, data.train, SEEDS)
    with pytest.raises(RunError, match="not finite"):
        wild = Training(optimizer="sgd", learning_rate=1e30)
        train_ensemble(TrainedRecipe(MLP(widths=[4]), wild, data), data, data.train, SEEDS)
