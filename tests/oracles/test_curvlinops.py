"""Factors and eigenvalues equal those of curvlinops, which `scripts/curvlinops_fixture.py` has written into a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from expunge.numerics.eigenbasis import eigenbases, ekfac_eigenvalues
from expunge.numerics.kronecker import collect

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import curvlinops_fixture as made

TABLES = dict(np.load(made.FIXTURE))


def case(name: str) -> tuple[nn.Module, list[tuple[Tensor, Tensor]], dict[str, nn.Module]]:
    """The network of the file, its data in other batches, and the layers."""
    own = {
        key.removeprefix(f"{name}/"): torch.from_numpy(value) for key, value in TABLES.items() if key.startswith(name)
    }
    net = made.NETS[name][0]()
    net.load_state_dict(
        {key.removeprefix("weights/"): value for key, value in own.items() if key.startswith("weights/")}
    )
    batches = list(zip(own["inputs"].split(17), own["targets"].split(17), strict=True))
    layers = {path: layer for path, layer in net.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    return net, batches, layers


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("name", ["texts", "images"])
def test_factors_are_those_of_curvlinops(name: str, sharing: Any) -> None:
    net, batches, layers = case(name)
    factors = collect(net, made.losses, batches, layers, sharing=sharing)
    for path, own in factors.layers.items():
        for side in ("inputs", "gradients"):
            theirs = torch.from_numpy(TABLES[f"{name}/{sharing}/{path}/{side}"])
            torch.testing.assert_close(getattr(own, side), theirs, msg=f"{name}, {sharing}, {path}, {side}")
    # The two ways of sharing differ where there are positions, so that equality says which one was taken.
    other = "reduce" if sharing == "expand" else "expand"
    first = next(iter(layers))
    assert not np.allclose(TABLES[f"{name}/{sharing}/{first}/inputs"], TABLES[f"{name}/{other}/{first}/inputs"])


def test_eigenvalues_are_those_of_curvlinops() -> None:
    net, batches, layers = case("images")
    bases = dict(eigenbases(collect(net, made.losses, batches, layers)))
    values = ekfac_eigenvalues(net, made.losses, batches, layers, bases, of="examples")
    for path, own in values.items():
        torch.testing.assert_close(own, torch.from_numpy(TABLES[f"images/ekfac/{path}"]), rtol=1e-6, atol=1e-12)
