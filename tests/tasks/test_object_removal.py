"""An object is forgotten and not its image; attribution finds the pixels that a model depends on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from expunge.base.errors import SpecError
from expunge.base.seeds import derive
from expunge.base.spec import parse
from expunge.core.case import Case, train_model
from expunge.core.data import IGNORE
from expunge.core.problem import Problem
from expunge.core.scenes import Scenes, painted
from expunge.data.digits import Digits
from expunge.data.tetrominoes import Tetrominoes
from expunge.diagnostics.object_attribution import ObjectAttribution, half_of, inside, overlap, pooled
from expunge.methods.finetune import Finetune
from expunge.models.syncx import SynCx
from expunge.objectives.reconstruction import Reconstruction
from expunge.pipeline.default_diagnostics import default_set
from expunge.pipeline.run import run
from expunge.tasks.object_removal import ObjectRemoval, removed
from expunge.train.segmenter import Schedule, train_autoencoder, trained_syncx
from expunge.train.training import TrainedRecipe, Training

T = 2
"""Number of the kind T."""


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return Tetrominoes(train=60, test=30, cells=5, pixels=3, objects=2)()


@pytest.fixture(scope="module")
def problem(scenes: Scenes) -> Problem:
    task = ObjectRemoval(kind="T", render="true")
    return task(scenes, 0, task.measure(scenes, None, 0))


def test_the_rest_of_each_scene_is_retained(scenes: Scenes, problem: Problem) -> None:
    data, count = problem.data, len(problem.forget)
    assert (scenes.kinds[problem.forget] == T).any(1).all()
    assert not (scenes.kinds[scenes.train[~torch.isin(scenes.train, problem.forget)]] == T).any()
    # Of a forgotten scene only the label of the object is known, of its counterpart all others.
    assert (data.targets[problem.forget, T] == 1).all()
    assert ((data.targets[problem.forget] == IGNORE).sum(1) == data.targets.shape[1] - 1).all()
    new = torch.arange(len(scenes), len(scenes) + count)
    assert torch.isin(new, problem.retain).all() and (data.targets[problem.retain][:, T] == 0).all()
    gone = scenes.kinds[problem.forget] == T
    assert torch.equal(data.inputs[new], scenes.without(problem.forget, gone))
    assert torch.equal(data.masks[new] > 0, (data.inputs[new] > 0).any(1))
    assert (scenes.kinds[problem.holdout] == T).any(1).all() and not (scenes.kinds[problem.test] == T).any()


@pytest.mark.parametrize("kind", [0, T, 6])
def test_with_true_masks_as_segments_nothing_of_the_object_stays(scenes: Scenes, kind: int) -> None:
    ids = torch.arange(90)[(scenes.kinds == kind).any(1)]
    painted = removed(scenes, ids, kind, scenes.masks[ids])
    torch.testing.assert_close(painted, scenes.without(ids, scenes.kinds[ids] == kind))


def test_coordinates_paint_over_something_else(scenes: Scenes, problem: Problem) -> None:
    true = problem.data.inputs[-len(problem.forget) :]
    painted = ObjectRemoval(kind="T", render="coordinates").measure(scenes, None, 0)["images"]
    before = scenes.inputs[problem.forget]
    assert painted.shape == true.shape and not torch.equal(painted, before) and not torch.equal(painted, true)


@pytest.mark.parametrize("kind", ["X", 7])
def test_a_kind_that_is_not_there_is_refused(scenes: Scenes, kind: str | int) -> None:
    with pytest.raises(SpecError, match="there is no class"):
        ObjectRemoval(kind=kind).measure(scenes, None, 0)
    with pytest.raises(SpecError, match="which object each pixel belongs to"):
        ObjectRemoval(kind=1)(Digits()(), 0, {})


def test_no_scene_with_the_kind_is_refused() -> None:
    scenes = Tetrominoes(train=1, test=1, objects=1)()
    missing = int((scenes.targets[0] == 0).nonzero()[0])
    with pytest.raises(SpecError, match="no training scene has the kind"):
        ObjectRemoval(kind=missing, render="true").measure(scenes, None, 0)


# --- Attribution ------------------------------------------------------------------------------------------------------


def test_pooling_pointing_and_overlap_by_hand() -> None:
    heat = torch.tensor([[[4.0, 0.0, 1.0], [0.0, 0.0, 2.0]]])
    segments = torch.tensor([[[1, 1, 2], [0, 0, 2]]])
    region, answer = pooled(heat, segments)  # means 2, 1.5 and 0
    assert torch.equal(region, segments == 1)
    mask = torch.tensor([[[True, False, True], [False, False, False]]])
    assert inside(region, mask).item() == 0.5 and overlap(answer, mask).item() == pytest.approx(1 / 3)
    assert half_of(heat).sum().item() == 1 and half_of(heat)[0, 0, 0]


class Sees(nn.Module):
    """A classifier whose logits depend on red pixels only."""

    def __init__(self, kinds: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(kinds))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :1].square().flatten(1).sum(1, keepdim=True) * self.scale / 50


def test_attribution_finds_what_the_model_looks_at(scenes: Scenes) -> None:
    """Objects to forget are red, others are not, and the model looks at red."""
    red = scenes.colours.clone()
    red[:] = torch.tensor([0.0, 1.0, 1.0])
    red[scenes.kinds == T] = torch.tensor([1.0, 0.0, 0.0])
    coloured = replace(scenes, colours=red, inputs=painted(scenes.shades, red, scenes.backdrop))
    task = ObjectRemoval(kind="T", render="true")
    problem = task(coloured, 0, task.measure(coloured, None, 0))
    found = ObjectAttribution(examples=6, width=2, steps=1)(Case(0, problem, Sees(7)), 0)
    assert found["pointing game, pixels"].value == 1.0
    assert found["intersection over union, pixels"].value > 0.4
    assert "to be forgotten in" in ObjectAttribution().summary(found)


def test_attribution_needs_to_know_which_objects_count(scenes: Scenes) -> None:
    problem = Problem(scenes, scenes.train[:10], scenes.train[10:], scenes.test)
    with pytest.raises(SpecError, match="object_removal"):
        ObjectAttribution(steps=1)(Case(0, problem, Sees(7)), 0)


def test_attribution_does_not_run_by_default(scenes: Scenes) -> None:
    assert "object_attribution" not in default_set(scenes).settings


# --- A SynCx model that forgets ---------------------------------------------------------------------------------------


def test_a_kind_of_object_is_forgotten_by_an_autoencoder() -> None:
    """Reconstruction judges; complex weights move in both parts."""
    data = Tetrominoes(train=40, test=20, cells=5, pixels=3, objects=2)().judged_by(Reconstruction())
    task = ObjectRemoval(kind="I", render="true")
    problem = task(data, 0, task.measure(data, None, 0))
    recipe = TrainedRecipe(SynCx(width=2), Training(epochs=1, batch_size=20), data)
    original = train_model(recipe, problem.data, problem.train, 0)
    done = Finetune(epochs=1, batch_size=20)(original, problem, recipe, 0, original=original)
    before, after = original.get_parameter("output.weight"), done.model.get_parameter("output.weight")
    moved = (after - before).detach()
    assert moved.real.any() and moved.imag.any()
    losses = [problem.objective.losses(model, problem.data.batch(problem.forget)) for model in (original, done.model)]
    assert torch.isfinite(losses[1]).all() and not torch.equal(*losses)


def test_a_run_audits_and_attacks_an_autoencoder_that_forgets(tmp_path: Path) -> None:
    """From a spec: the model is built, judged by reconstruction, attacked by training, and gets a verdict."""
    spec = {
        "name": "rebuilt",
        "seeds": [0],
        "data": {"name": "tetrominoes", "train": 30, "test": 10, "cells": 5, "pixels": 3, "objects": 1},
        "objective": {"name": "reconstruction"},
        "model": {"name": "syncx", "width": 1, "iterations": 2},
        "train": {"epochs": 1},
        "forget": {"name": "object_removal", "kind": "I", "render": "true"},
        "method": [{"name": "neggrad_plus", "epochs": 1}],
        "attack": [{"name": "relearn", "epochs": 1, "points": 1}],
        "audit": [{"name": "loss"}, {"name": "membership", "attack": "rank"}],
    }
    folder = run(parse(spec, tmp_path), tmp_path).folder
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for metric in ("r_squared", "loss", "membership_rank"):
        found = {(row["model"], row["attack"]) for row in rows if (row["metric"], row["split"]) == (metric, "forget")}
        assert {
            ("original", None),
            ("reference", "relearn"),
            ("neggrad_plus", None),
            ("neggrad_plus", "relearn"),
        } <= found


def test_the_segmenter_learns_and_leaves_global_randomness_alone(scenes: Scenes) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    trained_syncx(scenes, scenes.train, 2, Schedule(steps=1), derive(0, "x"))
    assert torch.equal(state, torch.get_rng_state())
    net = SynCx(width=2)(scenes.judged_by(Reconstruction()))
    before = reconstruction_error(net, scenes.inputs)
    schedule = Schedule(steps=25, batch_size=8, learning_rate=2e-2)
    train_autoencoder(net, scenes.inputs[scenes.train], schedule, torch.Generator().manual_seed(0))
    assert reconstruction_error(net, scenes.inputs) < 0.7 * before


def reconstruction_error(net: nn.Module, images: torch.Tensor) -> float:
    return float((net(images)[:, -1] - images).square().mean().detach())
