"""Closed-form removal: what it predicts is what happens, what it removes is gone, and nothing else moves."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from expunge.base.errors import MissingError, SpecError
from expunge.blocks import put
from expunge.blocks.bilinear import Bilinear, BilinearLayer, bilinear_layers
from expunge.core.data import Data
from expunge.core.problem import Problem
from expunge.methods.remove_modes import RemoveModes
from expunge.models.gpt import GPT


def problem(forget: int = 2, classes: int = 4) -> Problem:
    """160 points of four classes; the forget set is a class, or for `forget` -1 some points of each."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(160) % classes
    inputs = torch.randn(160, 6, generator=generator, dtype=torch.float64)
    inputs[torch.arange(160), targets] += 2
    data = Data(inputs, targets, torch.arange(120), torch.arange(120, 160), tuple("abcd"))
    chosen = targets[:120] == forget if forget >= 0 else torch.arange(120) < 40
    ids = torch.arange(120)
    return Problem(data, ids[chosen], ids[~chosen], data.test)


def network(hidden: int = 40) -> nn.Sequential:
    """Trained, with a bilinear layer before the logits, in double precision."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    put(model, Bilinear(hidden=hidden), "1")
    data, optimizer = problem().data, torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.inputs[:120]), data.targets[:120]).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def trained() -> nn.Sequential:
    return network()


@pytest.mark.parametrize("rank", [None, 1, 3])
def test_measured_collateral_is_the_predicted_one(trained, rank):
    given = problem()
    student = copy.deepcopy(trained)
    certificate = RemoveModes(rank=rank).edit(student, given)
    x = given.data.inputs[given.retain]
    with torch.no_grad():
        moved = float((student(x) - trained(x)).square().sum(1).mean())
    assert certificate.predicted == pytest.approx(moved, rel=1e-6)
    assert certificate.measured == pytest.approx(certificate.predicted, rel=1e-6)
    assert certificate.residual < 1e-6 and certificate.explained == pytest.approx(1)
    assert certificate.rank == (rank or 6) and not certificate.warnings()
    assert math.isinf(certificate.gap) == (rank is None)


def test_a_class_without_its_direction_is_never_answered_and_the_others_keep_their_order(trained):
    given, x = problem(), problem().data.inputs
    done = RemoveModes()(trained, given, None, 0)
    with torch.no_grad():
        before, after = trained(x), done.model(x)
    assert not (after.argmax(1) == 2).any()
    others = [0, 1, 3]
    assert torch.equal(after[:, others].argsort(1), before[:, others].argsort(1))
    assert torch.allclose(after[:, 2], after.mean(1))
    assert done.cost.gradients == len(given.forget)


def test_removed_modes_are_those_that_raise_the_class(trained):
    given, student = problem(), copy.deepcopy(trained)
    x = given.data.inputs[given.forget]
    direction = torch.eye(4, dtype=torch.float64)[2] - 0.25
    layer = student[1]
    hidden = torch.cat([trained[0](x), torch.ones(len(x), 1, dtype=torch.float64)], 1)
    modes = trained[1].modes(direction / direction.norm())
    raised = modes.strengths * (hidden @ modes.left).square().mean(0)
    best = int(raised.argmax())
    RemoveModes(rank=1).edit(student, given)
    left = modes.left[:, best]
    form = layer.interaction(direction / direction.norm())
    assert abs(float(left @ form @ left)) < 1e-8 * float(modes.strengths.abs().max())
    assert layer.cancelling == 0 and layer.left.out_features == 40


def test_two_classes_need_two_directions(trained):
    base = problem()
    both = torch.isin(base.data.targets[:120], torch.tensor([1, 2]))
    ids = torch.arange(120)
    given = Problem(base.data, ids[both], ids[~both], base.test)
    one, two = (RemoveModes(directions=n).edit(copy.deepcopy(trained), given) for n in (1, 2))
    assert one.explained < 0.9 and "no common direction" in str(one)
    assert two.explained == pytest.approx(1)
    student = copy.deepcopy(trained)
    RemoveModes(directions=2).edit(student, given)
    assert not torch.isin(student(base.data.inputs).argmax(1), torch.tensor([1, 2])).any()


def test_too_few_units_are_stated():
    small = network(hidden=6)
    certificate = RemoveModes(rank=1).edit(small, problem())
    assert certificate.residual > 1e-6 and "too few" in str(certificate)


@pytest.mark.parametrize(
    ("settings", "finding"),
    [
        ({"layer": "0"}, "bilinear layer"),
        ({"rank": 7}, "found 7, and '1' has 6"),
        ({"directions": 5}, "found 5, and '1' has 4"),
        ({"rank": 1, "gap": 10.0}, "plane"),
        ({"directions": 2}, "depend on 1 output directions"),
    ],
)
def test_what_does_not_fit_is_refused(trained, settings, finding):
    with pytest.raises(SpecError, match=finding):
        RemoveModes(**settings)(trained, problem(), None, 0)


def test_degenerate_modes_are_refused(trained):
    student = copy.deepcopy(trained)
    with torch.no_grad():
        # |x|^2 in one direction: five modes of the same strength.
        student[1] = BilinearLayer(5, 8, 4, bias=False).double()
        for side in (student[1].left, student[1].right):
            side.weight.zero_()[:5] = torch.eye(5)
        student[1].out.weight.zero_()[2] = 1.0
    with pytest.raises(SpecError, match="only as a plane"):
        RemoveModes(rank=2)(student, problem(), None, 0)


def test_models_without_a_layer_or_with_a_frozen_one_are_refused(trained):
    with pytest.raises(MissingError, match="BilinearLayer"):
        RemoveModes()(nn.Sequential(nn.Linear(6, 4)).double(), problem(), None, 0)
    frozen = copy.deepcopy(trained)
    frozen[1].right.requires_grad_(False)
    with pytest.raises(MissingError, match=r"1\.right\.weight is frozen"):
        RemoveModes()(frozen, problem(), None, 0)


def test_a_layer_inside_a_transformer_has_one_row_per_position():
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(0, 7, (30, 6), generator=generator)
    data = Data(text[:, :-1], text[:, 1:], torch.arange(20), torch.arange(20, 30), tuple("abcdefg"))
    given = Problem(data, torch.arange(4), torch.arange(4, 20), data.test)
    torch.manual_seed(0)
    model = put(GPT(width=8, layers=2, heads=2)(data), Bilinear(), "blocks.*.up").double().eval()
    student = copy.deepcopy(model)
    certificate = RemoveModes().edit(student, given)
    assert certificate.layer == "blocks.1.up"
    assert certificate.measured == pytest.approx(certificate.predicted, rel=1e-6)
    changed = [
        p
        for p, m in bilinear_layers(student).items()
        if not torch.equal(m.out.weight, bilinear_layers(model)[p].out.weight)
    ]
    assert changed == ["blocks.1.up"]
