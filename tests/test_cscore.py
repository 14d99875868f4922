"""C-scores against a loop by hand, and against what they are meant to see."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from expunge.base.seeds import derive
from expunge.core.case import Meter, train_model
from expunge.core.data import Data
from expunge.core.example_ids import current_ids
from expunge.models.mlp import MLP
from expunge.train.cscore import Counts, count, cscores
from expunge.train.evaluation import DataWithObjective, known
from expunge.train.training import TrainedRecipe, Training


@pytest.fixture(scope="module")
def data() -> Data:
    """Three clusters; ids are not the positions of the training set, and one example carries a wrong label."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(50) % 3
    inputs = 3 * torch.eye(3)[targets] + 0.3 * torch.randn(50, 3, generator=generator)
    targets[20] = (targets[20] + 1) % 3
    return Data(inputs, targets, torch.arange(10, 50), torch.arange(10), ("a", "b", "c"))


@pytest.fixture(scope="module")
def recipe(data: Data) -> TrainedRecipe:
    return TrainedRecipe(MLP(widths=[8]), Training(epochs=20, batch_size=16, learning_rate=1e-2), data)


def by_hand(recipe: TrainedRecipe, data: Data, seed: int, share: float) -> tuple[list[int], list[int]]:
    """One net, one example at a time."""
    k = len(data.train)
    order = torch.randperm(k, generator=torch.Generator().manual_seed(derive(seed, "split"))).tolist()
    seen = {int(data.train[i]) for i in order[: round(share * k)]}
    ids = torch.tensor([i for i in data.train.tolist() if i in seen])
    net = train_model(recipe, data, ids, derive(seed, "net"))
    right, held_out = [], []
    for example in data.train.tolist():
        out = example not in seen
        with torch.no_grad():
            said = int(net(data.inputs[example : example + 1]).argmax())
        held_out.append(int(out))
        right.append(int(out and said == int(data.targets[example])))
    return right, held_out


@pytest.mark.parametrize("share", [0.5, 0.7])
def test_counts_agree_with_a_loop_by_hand(recipe: TrainedRecipe, data: Data, share: float) -> None:
    for seed in (0, 1):
        found = count(recipe, data, seed, share)
        right, held_out = by_hand(recipe, data, seed, share)
        assert found.right.tolist() == right and found.held_out.tolist() == held_out
        assert sum(held_out) == 40 - round(share * 40)


def test_scores_are_rates_over_the_nets_that_held_out(recipe: TrainedRecipe, data: Data) -> None:
    nets, seed = 6, 3
    parts = [by_hand(recipe, data, derive(seed, index), 0.7) for index in range(nets)]
    right = torch.tensor([part[0] for part in parts]).sum(0)
    held_out = torch.tensor([part[1] for part in parts]).sum(0)
    expected = right.double() / held_out
    mean = expected[held_out > 0].mean()
    expected[held_out == 0] = mean
    found = cscores(recipe, data, nets, seed)
    assert (held_out == 0).any(), "with six nets some example is held out by none: the rule for it is tested too"
    torch.testing.assert_close(found, expected, rtol=1e-15, atol=0)
    assert torch.equal(found, cscores(recipe, data, nets, seed))
    assert not torch.equal(found, cscores(recipe, data, nets, seed + 1))


def test_a_wrong_label_scores_zero_and_the_others_one(recipe: TrainedRecipe, data: Data) -> None:
    total = Counts(torch.zeros(40, dtype=torch.int64), torch.zeros(40, dtype=torch.int64))
    for seed in range(12):
        total = total + count(recipe, data, seed)
    place = data.train.tolist().index(20)
    assert total.held_out[place] > 0 and total.score[place] == 0
    others = torch.arange(40) != place
    assert total.score[others].nanmean() > 0.95


def test_an_example_that_no_net_held_out_has_no_score() -> None:
    total = Counts(torch.tensor([1, 0, 0]), torch.tensor([2, 3, 0]))
    assert total.score[:2].tolist() == [0.5, 0.0] and total.score[2].isnan()
    assert (total + total).right.tolist() == [2, 0, 0] and (total + total).held_out.tolist() == [4, 6, 0]


class Oracle:
    """A recipe whose nets know exactly the examples they were trained on."""

    def build(self, seed: int) -> nn.Module:
        return Lookup()

    def fit(self, module: nn.Module, data: Data, ids: Tensor, seed: int, meter: Meter | None = None) -> nn.Module:
        assert isinstance(module, Lookup)
        module.known, module.labels = ids, data.targets
        with torch.no_grad():
            module.trained += 1  # a training that changes no weight is refused
        return module


class Lookup(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trained = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: Tensor) -> Tensor:
        ids = current_ids()
        assert ids is not None
        seen = torch.isin(ids, self.known)
        answers = torch.where(seen, self.labels[ids], (self.labels[ids] + 1) % 3)
        return nn.functional.one_hot(answers, 3).float()


def test_what_a_net_was_trained_on_never_counts(data: Data) -> None:
    """Nets that know all that they saw and nothing else: every score is 0, none is saved by having been trained on."""
    found = count(Oracle(), data, 0)
    assert found.right.sum() == 0 and found.held_out.sum() == 12


def test_known_is_in_the_order_of_the_ids(recipe: TrainedRecipe, data: Data) -> None:
    model = train_model(recipe, data, data.train, 0)
    ids, examples = torch.tensor([30, 11, 20, 40]), DataWithObjective(data, data.objective)
    each = torch.cat([known(model, examples, ids[i : i + 1]) for i in range(4)])
    assert torch.equal(known(model, examples, ids), each)
