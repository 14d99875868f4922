"""Which layers a method kept: the last one below its first change, if that is at least half of all layers."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from expunge import blocks
from expunge.blocks.codebook import Codebook, codebook_layers
from expunge.core.modules import kept_below


def chain() -> nn.Sequential:
    """Layers 0, 1, 3 and 5."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
    ).eval()


def coded(kind: str) -> nn.Sequential:
    """A codebook behind layer 3; its path lies inside that layer."""
    model = chain()
    blocks.put(model, Codebook(heads=2, codes=3, kind=kind), "3")
    return model.eval()


class Rooted(nn.Module):
    """The model itself holds a weight, as vision transformers hold positions."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(4))
        self.body, self.head = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(4, 2)


def tied() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


def moved(path: str) -> Callable[[nn.Module], None]:
    def move(model: nn.Module) -> None:
        with torch.no_grad():
            next(iter(model.get_submodule(path).parameters(recurse=False))).view(-1)[0] += 1e-6

    return move


def deleted(model: nn.Module) -> None:
    (layer,) = codebook_layers(model).values()
    mask = torch.zeros(layer.fate.shape, dtype=torch.bool)
    mask[0, 0] = True
    layer.delete(mask, 1)


def averaged(model: nn.Module) -> None:
    """A forward pass in training mode moves the running statistics of layer 1."""
    model.train()(torch.randn(8, 4))


@pytest.mark.parametrize(
    ("model", "edit", "kept"),
    [
        (chain(), moved("5"), "3"),
        (chain(), moved("3"), "1"),
        (chain(), lambda model: (moved("3")(model), moved("5")(model)), "1"),
        # A codebook with weights, and one whose tables are buffers: layer 3 gives what the codebook behind it gives.
        (coded("gradient"), deleted, "1"),
        (coded("ema"), deleted, "1"),
        (Rooted(), moved("head"), "body.1"),
        # Less than half is kept, or nothing, or all of it.
        (chain(), moved("1"), ""),
        (chain(), moved("0"), ""),
        (chain(), lambda model: (moved("0")(model), moved("5")(model)), ""),
        (chain(), averaged, ""),
        (Rooted(), moved(""), ""),
        (tied(), moved("2"), ""),
        (chain(), lambda model: None, ""),
        (chain(), lambda model: model.append(nn.Linear(3, 3)), ""),
    ],
)
def test_the_last_layer_below_the_first_change(model: nn.Module, edit: Callable[[nn.Module], None], kept: str) -> None:
    edited = copy.deepcopy(model)
    edit(edited)
    assert kept_below(model, edited) == kept
