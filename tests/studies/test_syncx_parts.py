"""Parts of the study `syncx`: matched sizes, known segments, and removal errors that are known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from expunge.data.tetrominoes import Tetrominoes
from expunge.models.syncx import SynCx
from expunge.studies.syncx import nets, objects
from expunge.studies.syncx.controls import ControlsStudy
from expunge.study.study import Work

SCENES = Tetrominoes(train=4, test=6, cells=5, pixels=3, objects=2)()


def test_rivals_are_matched_in_size() -> None:
    count = nets.size(nets.built(SynCx(width=4), SCENES, 0))
    kinds = nets.rivals(SCENES, 3, count)
    sizes = {name: nets.size(nets.built(kind, SCENES, 0)) for name, kind in kinds.items()}
    assert max(abs(size - count) for size in sizes.values()) < 0.2 * count, (count, sizes)


def test_true_masks_remove_objects_without_error() -> None:
    masks = SCENES.masks[SCENES.test]
    errors = objects.removal_errors({"true": masks, "all": torch.ones_like(masks)}, SCENES)
    assert errors["true"] == 0 and errors["untouched"] > 0.01 and errors["all"] > errors["true"]
    assert objects.decades(1.0, 0.01) == pytest.approx(2) and objects.decades(0.0, 0.0) == 0


def test_indices_of_true_masks_are_one() -> None:
    masks = SCENES.masks[SCENES.test]
    features = torch.nn.functional.one_hot(masks, 3).movedim(-1, 1).float()
    found = nets.indices(features, SCENES, 0)
    assert all(value == pytest.approx(1) for value in found.values())


def test_phases_that_stay_do_not_turn() -> None:
    """Iterations that all start from the same phases give the same output."""
    net = nets.built(SynCx(width=2), SCENES, 0).eval()
    once = net.iterate
    net.iterate = lambda images, count=None: once(images, 1) * (count or 1)
    index, turns = nets.by_iteration(net, SCENES, 3, 0)
    assert turns == pytest.approx([0, 0], abs=2e-3) and len(set(index)) == 1
    wheels = nets.wheel(net, SCENES, 2)
    assert len(wheels) == 2 and set(wheels[0]) == {"object 1", "object 2"}


def test_the_controls_compare_each_law_with_von_mises(tmp_path: Path) -> None:
    study = ControlsStudy(**{**ControlsStudy.presets["quick"].settings, "scenes": 8, "tests": 4, "steps": 2})
    measured = study.measure(0, Work(tmp_path, "controls"), {})
    index = measured["index"]
    assert measured["von_mises_is_best"] == pytest.approx(
        [index["von Mises"] - index[law] for law in ("uniform", "zero")]
    )
    assert {claim.id for claim in study.claims} == {"von_mises_is_best", "grays_are_bound"} <= set(measured)
