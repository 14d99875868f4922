"""Example-tied dropout as a setting of architectures: off by default to the bit, stored like any other, and refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from expunge import testing
from expunge.base.errors import SpecError
from expunge.core import checkpoint
from expunge.core.contracts import Architecture
from expunge.core.data import Data
from expunge.core.forward import accepts_ids
from expunge.core.tied import tied_layers
from expunge.models.cnn import CNN
from expunge.models.mlp import MLP
from expunge.models.resnet9 import ResNet9

PLAIN = [CNN(width=8), ResNet9(width=8), MLP(widths=[12])]
TIED = [
    CNN(width=8, fixed=0.5, memory=0.2),
    CNN(width=8, fixed=0.5, norm="batch"),
    ResNet9(width=8, fixed=0.5, memory=0.2),
    MLP(widths=[12, 7], dropout=0.1, fixed=0.3, memory=0.2),
]


def images() -> Data:
    inputs = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return Data(inputs, torch.arange(12) % 3, torch.arange(8), torch.arange(8, 12), tuple("abc"))


def built(architecture: Architecture) -> nn.Module:
    torch.manual_seed(4)
    return architecture(images())


@pytest.mark.parametrize("architecture", PLAIN, ids=str)
def test_by_default_nothing_is_tied(architecture: Architecture) -> None:
    model = built(architecture)
    assert not tied_layers(model) and not accepts_ids(model)
    assert architecture.settings()["fixed"] == 1 and architecture.settings()["memory"] == 0
    # What was stored before the settings existed has a key without them.
    assert not {"fixed", "memory"} & set(architecture.fingerprint()["settings"])


@pytest.mark.parametrize("architecture", TIED, ids=str)
def test_masks_draw_no_initial_weights(architecture: Architecture) -> None:
    settings = {k: v for k, v in architecture.settings().items() if k not in ("fixed", "memory")}
    plain, model = built(type(architecture)(**settings)), built(architecture)
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert {"fixed", "memory"} <= set(architecture.fingerprint()["settings"])
    assert accepts_ids(model)


@pytest.mark.parametrize("architecture", TIED, ids=str)
def test_keeps_the_contract_of_models(architecture: Architecture) -> None:
    testing.check_model(architecture, images())


@pytest.mark.parametrize("architecture", TIED, ids=str)
def test_a_stored_model_trains_with_the_same_masks(architecture: Architecture) -> None:
    model = built(architecture)
    again = checkpoint.restore(architecture(images()), checkpoint.dump(model), "model")
    batch = images().inputs
    for one, other in zip(tied_layers(model), tied_layers(again), strict=True):
        assert (one.memory, one.base) == (other.memory, other.base)
        ids = torch.arange(12)
        assert torch.equal(one.mask(ids), other.mask(ids))
    assert torch.equal(model.eval()(batch), again.eval()(batch))


def test_masks_are_where_the_paper_has_them() -> None:
    model = built(ResNet9(width=8, fixed=0.5, memory=0.2))
    names = [name for name, _ in model.named_children()]
    after = [names[i - 1] for i, name in enumerate(names) if name.endswith("_tied")]
    assert after == ["conv1", "conv2", "res1", "conv3", "conv4", "res2"]
    shared = [layer.mask(torch.arange(50)) for layer in tied_layers(model)]
    assert torch.equal(shared[1], shared[2]) and torch.equal(shared[4], shared[5])
    assert not torch.equal(shared[2], shared[3][:, :16])
    assert [layer.base for layer in tied_layers(model)] == [4, 8, 8, 16, 32, 32]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: CNN(memory=0.2), "memory: found 0.2 where fixed is 1"),
        (lambda: CNN(fixed=0.0), "fixed"),
        (lambda: CNN(fixed=0.5, memory=1.5), "memory"),
        (
            lambda: built(CNN(width=16, fixed=0.3)),
            r"splits a group of normalised channels \(16 in 8\).*multiples of 1/8",
        ),
        (lambda: built(CNN(width=9, fixed=0.5)), r"splits a group of normalised channels \(9 in 1\).*norm = none"),
    ],
)
def test_what_does_not_fit_is_refused(make: object, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        make()  # type: ignore[operator]


def test_shares_that_split_no_group_are_taken() -> None:
    assert [layer.base for layer in tied_layers(built(CNN(width=16, fixed=0.25)))] == [4, 8, 16, 32]
    assert [layer.base for layer in tied_layers(built(CNN(width=9, fixed=0.5, norm="none")))] == [4, 9, 18, 64]
