"""EU-k and CF-k: which parameters and statistics may move, and where EU-k starts from."""

from __future__ import annotations

import copy

import pytest
import torch
from _toy import classes, gpt, tokens, vector
from torch import nn

from expunge.base.errors import MissingError
from expunge.base.seeds import derive
from expunge.methods._layers import layers, reinitialise, training_only
from expunge.methods.cf_k import CFk
from expunge.methods.eu_k import EUk

METHODS = pytest.mark.parametrize("kind", [CFk, EUk], ids=["cf_k", "eu_k"])


def normed() -> nn.Sequential:
    """Four layers, two of them batch norms."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)
    ).double()


def moved(before: nn.Module, after: nn.Module) -> set[str]:
    """Names of modules of which any parameter or buffer changed."""
    now = after.state_dict()
    return {name.split(".")[0] for name, tensor in before.state_dict().items() if not torch.equal(tensor, now[name])}


@METHODS
@pytest.mark.parametrize(
    "k, expected", [(1, {"6"}), (2, {"6", "4"}), (3, {"6", "4", "3"}), (9, {"6", "4", "3", "1", "0"})]
)
def test_only_the_last_layers_move_statistics_included(kind, k, expected):
    model = normed()
    done = kind(k=k, epochs=2, learning_rate=0.01)(model, classes(), None, 0)
    assert moved(model, done.model) == expected
    assert all(parameter.requires_grad for parameter in done.model.parameters())


@METHODS
def test_frozen_parameters_inside_the_last_layers_keep_their_values(kind):
    model = normed()
    model[6].bias.requires_grad_(False)
    model[4].requires_grad_(False)  # no layer any more: the third counts as second to last
    done = kind(k=2, epochs=2, learning_rate=0.01)(model, classes(), None, 0).model
    assert moved(model, done) == {"3", "6"}
    assert torch.equal(done[6].bias, model[6].bias) and not torch.equal(done[6].weight, model[6].weight)
    assert not done[6].bias.requires_grad and not done[4].weight.requires_grad


def test_eu_k_starts_from_fresh_values_and_cf_k_from_the_original():
    model, problem = normed(), classes()
    # A budget of nothing: no step is taken.
    kept, fresh = (kind(k=1)(model, problem, None, 5, budget=0).model for kind in (CFk, EUk))
    assert moved(model, kept) == set()
    expected = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(5, "layers"))
        expected[6].reset_parameters()
    assert torch.equal(vector(fresh), vector(expected))
    assert moved(model, fresh) == {"6"}


def test_reinitialising_a_batch_norm_resets_its_statistics_and_keeps_what_is_frozen():
    model = normed()
    model(classes().data.inputs)
    model[1].bias.requires_grad_(False)
    with torch.no_grad():
        model[1].weight.fill_(7.0)
        model[1].bias.fill_(7.0)
    reinitialise(model, [layer for layer in layers(model) if layer.name == "1"], 0)
    assert model[1].weight.tolist() == [1.0] * 6 and model[1].bias.tolist() == [7.0] * 6
    assert model[1].running_mean.tolist() == [0.0] * 6


def test_reinitialising_touches_no_global_randomness():
    state = torch.get_rng_state()
    model = normed()
    reinitialise(model, layers(model), 0)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    model = nn.Linear(2, 2)
    drawn = torch.get_rng_state()
    reinitialise(model, layers(model), 9)
    assert torch.equal(torch.get_rng_state(), drawn) and not torch.equal(before, drawn)
    torch.set_rng_state(state)


def test_a_tied_head_is_no_layer_of_its_own():
    model = gpt()
    names = [layer.name for layer in layers(model)]
    assert names[0] == "tokens" and names[-1] == "norm" and "head" not in names
    done = CFk(k=1, epochs=2, learning_rate=0.01)(model, tokens(), None, 0).model
    assert moved(model, done) == {"norm"}
    everything = EUk(k=99, epochs=1)(model, tokens(), None, 0).model
    assert everything.head.weight is everything.tokens.weight


def test_a_layer_that_cannot_be_initialised_anew_is_named():
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(3).double())

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs * self.factor

    model = nn.Sequential(nn.Linear(5, 3).double(), Scale())
    with pytest.raises(MissingError, match=r"1 \(Scale\) cannot be reinitialised"):
        EUk(k=1)(model, classes(), None, 0)
    CFk(k=1)(model, classes(), None, 0)


def test_flags_are_put_back_when_training_fails():
    model = normed()
    with pytest.raises(RuntimeError, match="stopped"), training_only(model, layers(model)[-1:]):
        assert [p.requires_grad for p in model.parameters()] == [False] * 8 + [True] * 2
        raise RuntimeError("stopped")
    assert all(parameter.requires_grad for parameter in model.parameters())
