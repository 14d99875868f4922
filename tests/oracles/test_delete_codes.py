"""Deletion by codes: selectivity by hand, the curve, what policies do, and a sender that still knows."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from expunge.audits.patching import Patching
from expunge.audits.probe import Probe
from expunge.base.errors import MissingError, SpecError
from expunge.blocks import put
from expunge.blocks.codebook import OPEN, ORPHAN, Codebook, codebook_layers
from expunge.core.case import Case
from expunge.core.data import Data
from expunge.core.problem import Problem
from expunge.methods.delete_codes import DeleteCodes, code_counts, grid, ranked
from expunge.train.evaluation import tracked

FORGET = 2


def problem(mixed: bool = False) -> Problem:
    """240 points of four classes. The forget set is a class, or a tenth of each."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(240) % 4
    inputs = torch.randn(240, 6, generator=generator, dtype=torch.float64)
    inputs[torch.arange(240), targets] += 4
    data = Data(inputs, targets, torch.arange(180), torch.arange(180, 240), tuple("abcd"))
    ids = torch.arange(180)
    chosen = ids < 18 if mixed else targets[:180] == FORGET
    return Problem(data, ids[chosen], ids[~chosen], data.test)


def network(shared: bool = True, heads: int = 2, **settings) -> nn.Sequential:
    """A sender, a codebook behind it, and a receiver; trained."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.Linear(8, 4)).double()
    put(model, Codebook(codes=16, heads=heads, shared=shared, **settings), "2")
    model.double()
    with torch.no_grad():
        # The receiver makes the first class of zeros.
        model[3].bias.copy_(torch.tensor([2.0, 0.0, 0.0, 0.0]))
    model[3].bias.requires_grad_(False)
    data, optimizer = problem().data, torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(120):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model.train()(data.inputs[:180]), data.targets[:180]).backward()
        optimizer.step()
    return model.eval()


def sent(model: nn.Sequential, given: Problem) -> torch.Tensor:
    """What the sender writes, before the codebook."""
    with torch.no_grad():
        return nn.functional.linear(torch.relu(model[0](given.data.inputs)), model[2].weight, model[2].bias)


@pytest.fixture(scope="module")
def models() -> dict[bool, nn.Sequential]:
    return {shared: network(shared) for shared in (True, False)}


@pytest.mark.parametrize("shared", [True, False])
def test_selectivity_by_hand(models, shared):
    model, given = models[shared], problem()
    (layer,) = codebook_layers(model).values()
    books = layer.indices(sent(model, given))
    shares = {}
    for name, ids in (("forget", given.forget), ("retain", given.retain)):
        columns = [books[ids].flatten()] if shared else list(books[ids].T)
        shares[name] = np.stack([np.bincount(c, minlength=16) / len(c) for c in columns])
    order, ratio = ranked(layer, *(code_counts(model, layer, given, ids) for ids in (given.forget, given.retain)))
    used = shares["forget"] > 0
    with np.errstate(divide="ignore"):
        assert np.allclose(ratio.numpy()[used], shares["forget"][used] / shares["retain"][used])
    assert not ratio.numpy()[~used].any()
    values = [float(ratio[at]) for at in order]
    assert values == sorted(values, reverse=True) and len(order) >= used.sum() - len(ratio)


@pytest.mark.parametrize("policy", ["null", "nearest", "retain_mean"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_class_is_no_longer_answered_and_the_curve_says_what_it_cost(models, shared, policy):
    given, student = problem(), copy.deepcopy(models[shared])
    deletion = DeleteCodes(policy=policy, target=0.02, most=0.9).edit(student, given)
    (layer,) = codebook_layers(student).values()
    assert torch.equal(deletion.deleted, layer.fate != OPEN) and deletion.done.codes == int(deletion.deleted.sum())
    assert deletion.reached and tracked(student, given, given.forget).mean() == deletion.done.forget <= 0.02
    assert tracked(student, given, given.retain).mean() == pytest.approx(deletion.done.retain)
    assert deletion.done.retain > deletion.curve[0].retain - 0.15
    assert deletion.curve[0].codes == 0 and deletion.curve[0].forget > 0.9
    fewer = [point for point in deletion.curve if point.codes == deletion.done.codes - 1]
    assert fewer and fewer[0].forget > 0.02
    assert "still know" in str(deletion) and f"{deletion.done.codes} of" in str(deletion)
    assert bool((layer.indices(sent(student, given)) == ORPHAN).any()) == (policy != "nearest")
    if policy == "retain_mean":
        counts = code_counts(
            models[shared], codebook_layers(models[shared])["2.expunge_block.module"], given, given.retain
        )
        weights = counts * ~deletion.deleted
        mean = (weights / weights.sum(1, keepdim=True)).unsqueeze(-1) * layer.codebook
        assert torch.allclose(layer.substitute, mean.sum(1).detach())


def test_a_class_that_the_receiver_makes_of_zeros_is_named(models):
    """The wrong model that passes nothing: all its codes are deleted, and the receiver answers the class to zeros."""
    student = copy.deepcopy(models[False])
    with torch.no_grad():
        student[3].bias.copy_(torch.tensor([0.0, 0.0, 9.0, 0.0]).double())
    null = DeleteCodes(most=0.9).edit(copy.deepcopy(student), problem())
    assert not null.reached and null.done.forget > 0.9 and "not reached" in str(null)
    assert null.done == min(null.curve, key=lambda point: (point.forget, point.codes))


def test_the_same_seed_gives_the_same_model_and_no_gradients(models):
    done = [DeleteCodes(target=0.02)(models[True], problem(), None, seed) for seed in (0, 1)]
    assert done[0].cost.gradients == 0
    assert all(torch.equal(a, b) for a, b in zip(*(d.model.state_dict().values() for d in done), strict=True))


def test_a_forget_set_without_codes_of_its_own_is_named(models):
    deletion = DeleteCodes(most=0.1).edit(copy.deepcopy(models[True]), problem(mixed=True))
    assert not deletion.reached and "share their codes" in str(deletion)
    assert math.isfinite(deletion.retained) and deletion.done.codes <= 1


def test_the_cheat_accuracy_falls_and_the_sender_still_knows(models):
    """What a wrong model looks like that passes: its answers are those of retraining, and the layer below knows all.

    Patching behind the sender gives the original's answers back, to the bit, and the probe reads the class there. Behind
    the codebook patching finds a loss; a probe that has seen some of the class reads it also there, because zeros are a
    mark. Taking the codebook out brings the class back at once.
    """
    original, given = models[False], problem()
    done = DeleteCodes(target=0.02)(original, given, None, 0).model
    assert tracked(done, given, given.unexposed).mean() <= 0.05
    case = Case(0, given, original)
    below, behind = (Patching(layers=(path,), retain=20)(done, case, 0)[0].values.mean() for path in ("1", "2"))
    assert below == 0.0 and behind < -1
    read = {path: Probe(layer=path, exposed=True)(done, case, 0)[0].values.mean() for path in ("1", "2")}
    assert min(read.values()) > 0.9
    bare = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.Linear(8, 4)).double()
    bare.load_state_dict({name: t for name, t in done.state_dict().items() if "expunge_block" not in name})
    assert tracked(bare, given, given.unexposed).mean() > 0.8


@pytest.mark.parametrize(
    ("settings", "finding"),
    [
        ({"layer": "0"}, "codebook"),
        ({"count": 16}, "found 16, and '2.expunge_block.module' has 16 codes; allowed: at most 15"),
        ({"count": 15}, "the forget set uses"),
        ({"policy": "zero"}, "policy"),
        ({"target": 1.5}, "target"),
    ],
)
def test_what_does_not_fit_is_refused(models, settings, finding):
    with pytest.raises(SpecError, match=finding):
        DeleteCodes(**settings)(models[True], problem(), None, 0)


def test_models_without_a_codebook_are_refused():
    with pytest.raises(MissingError, match="CodebookLayer"):
        DeleteCodes()(nn.Sequential(nn.Linear(6, 4)).double(), problem(), None, 0)


def test_the_grid_ends_at_its_bound():
    assert list(grid(10)) == [1, 2, 3, 4, 6, 9, 10] and list(grid(0)) == [] and list(grid(1)) == [1]
