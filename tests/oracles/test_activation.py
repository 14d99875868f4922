"""Activations against plain loops over examples and positions, for layers of each type."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from _toy import EXACT, gpt, tokens
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.base.errors import MissingError, SpecError
from expunge.core.data import IGNORE
from expunge.numerics.activation import BANDS, activations, band_maps, removed_share
from expunge.numerics.eigenbasis import Eigenbasis, decomposed
from expunge.train import curvature
from expunge.train.matrices import matrices


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def run(model: nn.Module, batch: Any) -> Tensor:
    outputs: Tensor = model(batch)
    return outputs


LAYERS = {
    "linear": (nn.Linear(6, 4), draws(5, 6)),
    "positions": (nn.Linear(6, 4), draws(5, 3, 6)),
    "convolution": (nn.Conv2d(2, 4, 3, stride=2, padding=1), draws(5, 2, 7, 7)),
    "sequence": (nn.Conv1d(2, 4, 3), draws(5, 2, 9)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_the_response_to_a_change_is_that_of_the_layer_with_changed_weights(kind: str) -> None:
    layer, inputs = LAYERS[kind]
    layer = layer.double()
    change = draws(*layer.weight.shape, seed=1)
    other = torch.nn.utils.parametrize.type_before_parametrizations(layer)
    assert other is type(layer)
    maps = {"0": {"removed": change.flatten(1), "whole": layer.weight.detach().flatten(1)}}
    model = nn.Sequential(layer)
    found = activations(model, run, [inputs[:2], inputs[2:]], {"0": layer}, maps)
    for name, weight in (("removed", change), ("whole", layer.weight.detach())):
        with torch.no_grad():
            response = torch.func.functional_call(
                layer, {"weight": weight, "bias": torch.zeros_like(layer.bias)}, (inputs,)
            )
        expected = torch.stack([own.square().sum().sqrt() for own in response])
        torch.testing.assert_close(found["0"][name], expected, **EXACT)
    share = found["0"]["removed"] / found["0"]["whole"]
    torch.testing.assert_close(removed_share(found), share, **EXACT)


def test_only_positions_that_count_are_counted() -> None:
    problem, model = tokens(), gpt()
    layers = matrices(model, ["blocks.0.up"])
    maps = {"blocks.0.up": {"whole": layers["blocks.0.up"].weight.detach()}}  # type: ignore[dict-item]
    seen: list[Tensor] = []
    handle = layers["blocks.0.up"].register_forward_hook(lambda m, i, o: seen.append(i[0]))
    found = {
        counted: curvature.activations(model, problem, problem.forget, layers, maps, counted=counted)  # type: ignore[arg-type]
        for counted in ("decided", "all", "first")
    }
    handle.remove()
    weight = maps["blocks.0.up"]["whole"]
    squares = F.linear(seen[0], weight).square().sum(2)
    decided = problem.data.targets[problem.forget] != IGNORE
    torch.testing.assert_close(found["decided"]["blocks.0.up"]["whole"], (squares * decided).sum(1).sqrt(), **EXACT)
    torch.testing.assert_close(found["all"]["blocks.0.up"]["whole"], squares.sum(1).sqrt(), **EXACT)
    torch.testing.assert_close(found["first"]["blocks.0.up"]["whole"], squares[:, 0].sqrt(), **EXACT)


def test_bands_split_the_inputs_in_the_order_of_curvature() -> None:
    moment = torch.diag(torch.arange(20.0, 0, -1)).double()
    basis = Eigenbasis(*decomposed(torch.eye(2).double(), "0"), *decomposed(moment, "0"))
    maps = band_maps(basis)
    assert list(maps) == list(BANDS) and [len(rows) for rows in maps.values()] == [2, 3, 5, 10]
    layer, inputs = nn.Linear(20, 2).double(), draws(4, 20)
    found = activations(nn.Sequential(layer), run, [inputs], {"0": layer}, {"0": maps})["0"]
    # The eigenvectors are the axes, so a band is a range of inputs.
    for name, (low, high) in {"top 10 %": (0, 2), "25-50 %": (5, 10), "lowest half": (10, 20)}.items():
        torch.testing.assert_close(found[name], inputs[:, low:high].norm(dim=1), **EXACT)
    whole = sum(of.square() for of in found.values())
    torch.testing.assert_close(whole, inputs.square().sum(1), **EXACT)
    assert list(band_maps(Eigenbasis(*decomposed(moment[:3, :3], "0"), *decomposed(moment[:3, :3], "0")))) != list(
        BANDS
    )


def test_a_layer_that_runs_twice_has_the_positions_of_both_runs() -> None:
    layer, inputs = nn.Linear(4, 4).double(), draws(3, 4)
    model = nn.Sequential(layer, nn.Tanh(), layer)
    found = activations(model, run, [inputs], {"0": layer}, {"0": {"a": torch.eye(4).double()}})["0"]["a"]
    second = torch.tanh(layer(inputs)).detach()
    torch.testing.assert_close(found, (inputs.square().sum(1) + second.square().sum(1)).sqrt(), **EXACT)


def test_what_cannot_be_measured_is_refused() -> None:
    layer, apart = nn.Linear(4, 4), nn.Linear(4, 4)
    maps = {"0": {"a": torch.eye(4)}}
    with pytest.raises(SpecError, match="examples: there are none"):
        activations(nn.Sequential(layer), run, [], {"0": layer}, maps)
    with pytest.raises(SpecError, match="did not run"):
        activations(nn.Sequential(layer), run, [torch.ones(2, 4)], {"0": apart}, maps)
    norm = nn.LayerNorm(4)
    with pytest.raises(MissingError, match="LayerNorm"):
        activations(nn.Sequential(norm), run, [torch.ones(2, 4)], {"0": norm}, maps)
