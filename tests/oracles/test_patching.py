"""Activation patching: the original into itself changes nothing, an untrained model loses the answer, by hand too."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from expunge.audits.patching import Patching, passing_layers, patched
from expunge.base.errors import MissingError, SpecError
from expunge.core.case import Case
from expunge.core.data import Data
from expunge.core.problem import Problem
from expunge.models.gpt import GPT
from expunge.models.mlp import MLP
from expunge.models.vit import ViT


def images() -> Problem:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 1, 8, 8, generator=generator)
    data = Data(inputs, torch.arange(40) % 3, torch.arange(30), torch.arange(30, 40), tuple("abc"))
    return Problem(data, torch.arange(10), torch.arange(10, 30), data.test)


def texts() -> Problem:
    text = torch.randint(0, 7, (40, 6), generator=torch.Generator().manual_seed(0))
    targets = text[:, 1:].clone()
    targets[:, :2] = -100
    data = Data(text[:, :-1], targets, torch.arange(30), torch.arange(30, 40), tuple("abcdefg"))
    return Problem(data, torch.arange(10), torch.arange(10, 30), data.test)


MODELS = {
    "mlp": (images, MLP(widths=[16, 8]), ["1", "2", "3", "4"]),
    "vit": (images, ViT(patch=4, width=8, depth=2, heads=2), ["patches", "blocks.0", "blocks.1", "norm"]),
    "gpt": (texts, GPT(width=8, layers=2, heads=2), ["blocks.0", "blocks.1", "norm"]),
}


def build(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    problem, architecture, _ = MODELS[name]
    return architecture(problem().data).eval()


def trained(name: str) -> nn.Module:
    model, problem = build(name), MODELS[name][0]()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        problem.objective.loss(model, problem.data.batch(problem.train)).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module", params=list(MODELS))
def case(request):
    original = trained(request.param)
    return request.param, Case(0, MODELS[request.param][0](), original)


def test_layers_that_everything_passes_are_found(case):
    name, given = case
    # `blocks` returns what its last member returns, and the first layer of a text model is a lookup.
    assert [p for p in passing_layers(given.original, given.problem) if p not in ("tokens", "blocks")] == MODELS[name][
        2
    ]


def test_the_original_keeps_everything_at_every_layer(case):
    name, given = case
    values = patched(
        given.original, copy.deepcopy(given.original), given.problem, given.problem.unexposed, MODELS[name][2]
    )
    assert values.shape == (len(given.problem.unexposed), len(MODELS[name][2])) and np.all(values == 0)
    assert all(np.all(scores.values == 0) for scores in Patching()(given.original, given, 0))


def test_an_untrained_model_carries_no_answer(case):
    name, given = case
    values = patched(given.original, build(name, seed=5), given.problem, given.problem.unexposed, MODELS[name][2])
    assert values.mean(0).max() < -0.5


def test_a_model_with_another_output_layer_still_carries_it(case):
    """Its own answers are destroyed, so only its hidden states can show what it knows."""
    name, given = case
    hidden = copy.deepcopy(given.original)
    last = hidden[-1] if name == "mlp" else hidden.head
    last.weight = nn.Parameter(torch.randn_like(last.weight))
    forget, retain = Patching(layers=tuple(MODELS[name][2][1:]))(hidden, given, 0)
    if name != "gpt":
        assert np.all(forget.values == 0) and np.all(retain.values == 0)
    assert given.problem.objective.loss(hidden, given.problem.data.batch(given.problem.unexposed)) > 1


def test_a_patched_perceptron_by_hand():
    given, target, source = images(), build("mlp"), build("mlp", 1)
    ids = given.unexposed
    x, y = given.data.inputs[ids], given.data.targets[ids]
    with torch.no_grad():
        mixed = target[3:](source[:3](x)).log_softmax(1) - target(x).log_softmax(1)
    wanted = mixed[torch.arange(len(ids)), y]
    assert np.allclose(patched(target, source, given, ids, ["2"])[:, 0], wanted, atol=1e-6)


def test_only_decided_positions_of_a_text_are_patched():
    """By hand: positions without a target keep the target's own states, which later positions read."""
    given, target, source = texts(), build("gpt").double(), build("gpt", 1).double()
    ids, out = given.unexposed, []
    tokens, targets = given.data.inputs[ids], given.data.targets[ids]
    with torch.no_grad():
        own, other = (m.blocks[0](m.tokens(tokens) + m.positions.weight[: tokens.shape[1]]) for m in (target, source))
        mixed = torch.where((targets != -100)[..., None], other, own)
        for state in (mixed, own):
            logits = target.head(target.norm(target.blocks[1](state)))
            logp = logits.log_softmax(-1).gather(2, targets.clamp_min(0)[..., None])[..., 0]
            out.append(logp[:, 2:].mean(1))
    assert np.allclose(patched(target, source, given, ids, ["blocks.0"])[:, 0], out[0] - out[1], atol=1e-9)


def test_a_control_on_retained_examples_is_subtracted():
    given = Case(0, images(), trained("mlp"))
    forget, retain = Patching(layers=("2",))(build("mlp", 1), given, 0)
    raw = patched(given.original, build("mlp", 1), given.problem, given.problem.unexposed, ["2"])[:, 0]
    assert np.allclose(forget.values, raw - retain.values.mean())
    assert (forget.role, retain.role) == ("description", "description")
    assert Patching(shared_basis=True)(given.original, given, 0)[0].role == "knowledge"


def test_layers_that_are_not_there_are_refused():
    with pytest.raises(SpecError, match="layer"):
        Patching(layers=("blocks.9",)).check_model(build("gpt"))
    given = images()
    with pytest.raises(MissingError, match="no hidden layer"):
        Patching()(
            nn.Sequential(nn.Flatten(), nn.Linear(64, 3)),
            Case(0, given, nn.Sequential(nn.Flatten(), nn.Linear(64, 3))),
            0,
        )
