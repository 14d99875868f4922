"""The diagnostic against the edit itself, and on a net whose forget examples use directions of their own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _toy import classes, gpt, linear, net, tokens
from torch import nn

from expunge.base.errors import ExpungeError, MissingError
from expunge.core.case import Case
from expunge.core.data import Data
from expunge.core.problem import Problem
from expunge.diagnostics.low_curvature import AREA, FORGET, RETAIN, TASK, UNSEEN, LowCurvature


def case_of(problem: Problem, model: nn.Module) -> Case:
    return Case(seed=0, problem=problem, original=model)


def separated() -> tuple[Problem, nn.Module]:
    """Retain examples live in two of five inputs, forget examples in a third one, which the mean hardly sees."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.zeros(120, 5)
    inputs[:, :2] = torch.randn(120, 2, generator=generator)
    inputs[:, 2:] = 0.02 * torch.randn(120, 3, generator=generator)
    inputs[:10, 2] += 2.0
    targets = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 1).long()
    data = Data(inputs.double(), targets, torch.arange(80), torch.arange(80, 120), ("a", "b", "c"))
    model = linear()
    with torch.no_grad():
        # The softmax does not see what all logits have in common; an edit would remove all of it from every example.
        model[0].weight -= model[0].weight.mean(0)
    return Problem(data, torch.arange(10), torch.arange(10, 80), data.test), model


def test_examples_with_directions_of_their_own_are_detected() -> None:
    problem, model = separated()
    diagnostic = LowCurvature(layers=["0"], rho=0.95)
    found = diagnostic(case_of(problem, model), 0)
    forget, retain, unseen = (found[TASK.format(name=name)] for name in (FORGET, RETAIN, UNSEEN))
    assert forget.low > 0.4 > 0.25 > max(retain.high, unseen.high)
    assert found[AREA.format(score="response removed")].value > 0.95
    assert found["forget over retain, activation of the lowest half of 0"].value > 3
    assert 1 < found["effective rank of inputs of 0"].value < 3
    assert "It points at the forget set" in diagnostic.summary(found)
    # The labels of an untrained net tell nothing, and neither does the loss.
    assert found[AREA.format(score="loss")].value < 0.9
    other = replace(problem, forget=problem.retain[:10], retain=problem.retain[10:])
    blind = diagnostic(case_of(other, model), 0)
    assert "does not point" in diagnostic.summary(blind)


def test_the_share_is_that_of_the_edited_layer() -> None:
    from expunge.methods.curvature_edit import CurvatureEdit
    from expunge.train.curvature import kronecker_factors
    from expunge.train.evaluation import sample
    from expunge.train.matrices import matrices

    problem, model = classes(), net()
    found = LowCurvature(layers=["0"], rho=0.7)(case_of(problem, model), 4)
    from expunge.base.seeds import derive

    pool = sample(problem.retain, 400, "low curvature")
    layers = matrices(model, ["0"])
    factors = kronecker_factors(model, problem, pool[::2], layers, seed=derive(4, "labels"))
    statistics = factors.tensors()
    edited = CurvatureEdit(layers=["0"], rho=0.7)(model, problem, None, 0, None, statistics, model).model
    before, after = (m.get_submodule("0").weight.detach() for m in (model, edited))
    inputs = problem.data.inputs[problem.forget]
    share = ((inputs @ (before - after).T).norm(dim=1) / (inputs @ before.T).norm(dim=1)).mean()
    assert found[TASK.format(name=FORGET)].value == pytest.approx(float(share), rel=1e-9)


def test_texts_have_the_other_scores_too() -> None:
    diagnostic = LowCurvature()
    found = diagnostic(case_of(tokens(), gpt()), 0)
    scores = {name.rpartition("by ")[2] for name in found if name.startswith("area")}
    assert scores == {"response removed", "loss", "min_k_plus", "zlib"}
    assert all(0 <= found[AREA.format(score=score)].value <= 1 for score in scores)
    layers = {name.rpartition(" in ")[2] for name in found if "response removed in" in name}
    assert len(layers) == 4 and "blocks.0.down" in layers
    assert not any(name.startswith(TASK.format(name="unseen a")) for name in found)


def test_sets_of_a_file_are_shown_beside_labels(tmp_path: Path) -> None:
    path = tmp_path / "sets.json"
    path.write_text(json.dumps({"sums": [24, 25], "copies": [26]}))
    problem = classes()
    found = LowCurvature(sets=str(path))(case_of(problem, net()), 0)
    names = [name.removeprefix(TASK.format(name="")) for name in found if name.startswith(TASK.format(name=""))]
    assert names == [FORGET, RETAIN, UNSEEN, "sums", "copies", "unseen a", "unseen b", "unseen c"]
    only = LowCurvature(sets=str(path))(
        case_of(replace(problem, forget=torch.tensor([24, 25]), test=problem.test[2:]), net()), 0
    )
    assert only[TASK.format(name=FORGET)].value == only[TASK.format(name="sums")].value
    assert not np.isnan(only[TASK.format(name="sums")].low)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "JSON object of names"),
        ('{"sums": ["a"]}', "JSON object of names"),
        ('{"sums": []}', "'sums' is empty"),
        ('{"sums": [9999]}', r"sets \(sums\)"),
        ('{"forget set": [1]}', "name of a set of its own"),
        ("{", "JSON object of names"),
        (None, "sets"),
    ],
)
def test_sets_that_cannot_be_read_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "sets.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ExpungeError, match=message):
        LowCurvature(sets=str(path))(case_of(classes(), net()), 0)


def test_layers_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(classes(), net())
    with pytest.raises(MissingError, match="LayerNorm"):
        LowCurvature(layers=["**.norm1"])(case_of(tokens(), gpt()), 0)
    with pytest.raises(ExpungeError, match="'nowhere'"):
        LowCurvature(layers=["nowhere"])(case, 0)
    monkeypatch.setattr("expunge.train.matrices.memory", lambda: 100)
    with pytest.raises(ExpungeError, match="of memory"):
        LowCurvature()(case, 0)
