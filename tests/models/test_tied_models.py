"""Example-tied dropout in models: no weight is drawn or named otherwise, stored like any other, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from expunge import blocks, testing
from expunge.base.errors import SpecError
from expunge.blocks._architecture import Placed
from expunge.blocks._put import inserted
from expunge.blocks._tied_layer import base_channels
from expunge.blocks.tied_dropout import TiedDropout, tied_layers
from expunge.core import checkpoint
from expunge.core.contracts import Architecture
from expunge.core.data import Data
from expunge.models.cnn import CNN
from expunge.models.mlp import MLP
from expunge.models.resnet9 import ResNet9

RELUS = ("2", "5", "8", "11")
TIED = {
    "cnn": (CNN(width=8), RELUS, TiedDropout(0.5, 0.2)),
    "cnn-batch": (CNN(width=8, norm="batch"), RELUS, TiedDropout(0.5)),
    "resnet9": (ResNet9(width=8), ("conv?", "res?"), TiedDropout(0.5, 0.2)),
    "mlp": (MLP(widths=[12, 7], dropout=0.1), ("3", "6"), TiedDropout(0.3, 0.2)),
}
EACH = pytest.mark.parametrize(("plain", "at", "block"), TIED.values(), ids=TIED)


def images() -> Data:
    inputs = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return Data(inputs, torch.arange(12) % 3, torch.arange(8), torch.arange(8, 12), tuple("abc"))


def tied(plain: Architecture, at: tuple[str, ...], block: TiedDropout) -> Architecture:
    found: Architecture = blocks.with_blocks(plain, [Placed(block, at, "tied_dropout")])
    return found


def built(architecture: Architecture) -> nn.Module:
    torch.manual_seed(4)
    return architecture(images())


def test_an_architecture_without_blocks_is_itself() -> None:
    plain = CNN()
    assert blocks.with_blocks(plain, []) is plain


@EACH
def test_masks_draw_no_weights_and_rename_none(plain: Architecture, at: tuple[str, ...], block: TiedDropout) -> None:
    without, architecture = built(plain), tied(plain, at, block)
    model = built(architecture)
    assert list(without.state_dict()) == list(model.state_dict())
    assert all(torch.equal(without.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert architecture.fingerprint() != plain.fingerprint()
    assert len(tied_layers(model)) == len(inserted(model)) > 0
    # Either's weights load into the other.
    for source, target in ((without, model), (model, without)):
        checkpoint.restore(target, checkpoint.dump(source), "model")


@EACH
def test_keeps_the_contract_of_models(plain: Architecture, at: tuple[str, ...], block: TiedDropout) -> None:
    testing.check_model(tied(plain, at, block).__call__, images())  # type: ignore[arg-type]


def test_masks_are_where_the_paper_has_them() -> None:
    model = built(tied(*TIED["resnet9"]))
    assert [block.path for block in inserted(model)] == ["conv1", "conv2", "res1", "conv3", "conv4", "res2"]
    widths: list[int] = []
    for block in inserted(model):
        block.module.register_forward_hook(lambda _, __, output: widths.append(output.shape[1]))
    model.eval()(images().inputs)
    assert [base_channels(width, 0.5) for width in widths] == [4, 8, 8, 16, 32, 32]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TiedDropout(fixed=0.0), "fixed"),
        (lambda: TiedDropout(memory=1.5), "memory"),
        (
            lambda: built(tied(CNN(width=16), RELUS, TiedDropout(0.3))),
            r"model.block\[0\].fixed: found 0.3, which splits a group of normalised channels \(16 in 8\).*of 1/8",
        ),
        (
            lambda: built(tied(CNN(width=9), RELUS, TiedDropout(0.5))),
            r"splits a group of normalised channels \(9 in 1\).*another norm",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make: object, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make()  # type: ignore[operator]


def test_shares_that_split_no_group_are_taken() -> None:
    assert len(tied_layers(built(tied(CNN(width=16), RELUS, TiedDropout(0.25))))) == 4
    assert len(tied_layers(built(tied(CNN(width=9, norm="none"), ("1", "3", "5", "8"), TiedDropout(0.5))))) == 4
