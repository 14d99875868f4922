"""What collect makes of batches, of padding, and of outputs that only an objective understands."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import expunge
from expunge.base.errors import SpecError
from expunge.core.collect import collect
from expunge.core.data import IGNORE
from expunge.objectives.classification import Classification


def test_a_list_of_batches_is_joined() -> None:
    found = collect([(torch.rand(4, 3), torch.arange(4)), (torch.rand(2, 3), torch.arange(2))], where="retain")
    assert found.inputs.shape == (6, 3)
    assert found.targets.tolist() == [0, 1, 2, 3, 0, 1]


def test_a_list_of_items_is_stacked() -> None:
    found = collect([(torch.rand(1, 4, 4), 3), (torch.rand(1, 4, 4), 1)], where="retain")
    assert found.inputs.shape == (2, 1, 4, 4)
    tokens = collect([(torch.arange(5), torch.arange(5))] * 2, where="retain")
    assert tokens.targets.shape == (2, 5)


def test_batches_of_dicts_come_back_as_the_items_of_their_owner() -> None:
    """Their own training sees labels that are not shifted, and the mask."""
    batch = {
        "input_ids": torch.tensor([[5, 6, 7], [8, 9, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "labels": torch.tensor([[5, 6, 7], [8, 9, IGNORE]]),
    }
    for source in ([batch], iter([batch])):
        found = collect(source, where="retain")
        assert found.targets.tolist() == [[6, 7, IGNORE], [9, IGNORE, IGNORE]]
        item = found.items[1]
        assert {key: value.tolist() for key, value in item.items()} == {
            key: value[1].tolist() for key, value in batch.items()
        }


def test_padding_is_refused_where_the_model_would_see_it() -> None:
    item = {"input_ids": torch.tensor([5, 0]), "attention_mask": torch.tensor([1, 0]), "label": torch.tensor(1)}
    with pytest.raises(SpecError, match="is padded"):
        collect([item], where="forget")


class Both(NamedTuple):
    scores: Tensor
    hidden: Tensor


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Both:
        hidden = self.body(x)
        return Both(self.head(hidden), hidden)


class First(Classification):
    """An objective of one's own."""


def test_an_objective_reads_what_the_model_returns() -> None:
    data = {name: (torch.rand(6, 3), torch.arange(6) % 2) for name in ("forget", "retain", "test")}
    with pytest.raises(SpecError, match="output = "):
        expunge.case(TwoOutputs(), **data)
    case = expunge.case(TwoOutputs(), **data, objective=First(output="scores"))
    assert case.problem.data.labels == ("0", "1")
