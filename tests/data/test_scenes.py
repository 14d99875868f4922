"""Scenes: pixels belong to the objects that the masks say, objects go without a trace, and controls do what they say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from expunge.base.errors import SpecError
from expunge.core.scenes import NOTHING, Scenes, require_scenes
from expunge.data._scenes import contacts
from expunge.data.digits import Digits
from expunge.data.shaded_shapes import ShadedShapes
from expunge.data.sprites import Sprites
from expunge.data.tetrominoes import PIECES, Tetrominoes

SMALL: dict[str, Any] = {
    "tetrominoes": lambda **more: Tetrominoes(train=40, test=10, cells=6, pixels=3, **more),
    "sprites": lambda **more: Sprites(train=40, test=10, side=24, **({"objects": 3} | more)),
    "shaded_shapes": lambda **more: ShadedShapes(train=40, test=10, side=24, **({"objects": 3, "least": 2} | more)),
}


@pytest.fixture(params=SMALL, scope="module")
def made(request: pytest.FixtureRequest) -> tuple[str, Scenes]:
    return request.param, SMALL[request.param]()()


def test_pixels_have_the_colour_of_their_object(made: tuple[str, Scenes]) -> None:
    _, scenes = made
    for image, mask, colours, backdrop in zip(
        scenes.inputs, scenes.masks, scenes.colours, scenes.backdrop, strict=True
    ):
        assert torch.equal(image[:, mask == 0], backdrop[:, None].expand(-1, int((mask == 0).sum())))
        for number in mask.unique().tolist()[1:]:
            pixels, colour = image[:, mask == number], colours[number - 1][:, None]
            brightness = pixels.amax(0) / colour.max()
            torch.testing.assert_close(pixels, colour * brightness)
            assert (brightness > 0).all() and (brightness <= 1).all()


def test_a_scene_without_an_object_shows_what_was_behind(made: tuple[str, Scenes]) -> None:
    name, scenes = made
    ids, gone = torch.arange(20), torch.zeros(20, scenes.kinds.shape[1], dtype=torch.bool)
    gone[:, 0] = True
    images, changed = scenes.without(ids, gone), scenes.masks[ids] == 1
    assert torch.equal(images.movedim(1, -1)[~changed], scenes.inputs[ids].movedim(1, -1)[~changed])
    expected = scenes.backdrop[ids][..., None, None].expand_as(images).movedim(1, -1)[changed]
    if name == "tetrominoes":
        assert torch.equal(images.movedim(1, -1)[changed], expected)
    assert torch.equal(scenes.without(ids, torch.zeros_like(gone)), scenes.inputs[ids])
    left = scenes.kinds_without(ids, gone)
    for row, kinds in enumerate(scenes.kinds[ids, 1:].tolist()):
        assert {k for k in kinds if k != NOTHING} == set(left[row].nonzero().flatten().tolist())


def test_what_is_behind_an_object_appears() -> None:
    """Where the last object covers an earlier one, the earlier one is seen without it."""
    scenes = Sprites(train=60, test=10, side=32, least=None, objects=4)()
    last = torch.tensor([[False, False, False, True]]).expand(70, -1)
    masks = scenes.masks
    covered = (scenes.shades[:, 3] > 0) & (scenes.shades[:, :3] > 0).any(1)
    assert covered.any() and (masks[covered] == 4).all()
    images = scenes.without(torch.arange(70), last).movedim(1, -1)[covered]
    backdrop = scenes.backdrop[:, None, None].expand(-1, 32, 32, -1)[covered]
    assert (images != backdrop).any(1).all()


def test_seventeen_tetrominoes() -> None:
    shapes = {rotation for rotations in PIECES.values() for rotation in rotations}
    assert len(shapes) == 17 and all(shape.count("#") == 4 for shape in shapes)
    scenes = Tetrominoes(train=30, test=10)()
    for number in (1, 2, 3):
        assert ((scenes.masks == number).flatten(1).sum(1) == 4 * 25).all()


def test_the_seed_decides() -> None:
    first, again, other = (SMALL["tetrominoes"](seed=seed)() for seed in (3, 3, 4))
    assert torch.equal(first.inputs, again.inputs) and not torch.equal(first.inputs, other.inputs)


@pytest.mark.parametrize("name", SMALL)
def test_controls(name: str) -> None:
    same, gray = (SMALL[name](colours=colours)() for colours in ("same", "gray"))
    assert (same.colours == same.colours[:, :1]).all() and len(same.colours[:, 0].unique(dim=0)) > 3
    assert (gray.inputs == gray.inputs[:, :1]).all() and len(gray.colours[:, :, 0].unique()) > 20
    for touching, wanted in (("never", False), ("always", True)):
        scenes = SMALL[name](touching=touching, objects=2, **({"least": None} if name != "tetrominoes" else {}))()
        touch = contacts(scenes.shades > 0)[:, 0, 1]
        assert (touch == wanted).all()
    counts = (SMALL[name](objects=3, least=1)().kinds != NOTHING).sum(1)
    assert set(counts.tolist()) == {1, 2, 3}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Tetrominoes(cells=4, pixels=4, objects=5), "5 pieces of 4 cells are more than 4 x 4 cells"),
        (Tetrominoes(cells=3, objects=1), "at least 4, the longest piece"),
        (Tetrominoes(cells=4, objects=3, touching="never", train=20, test=5), "scenes with 3 objects could be placed"),
        (Sprites(objects=16, least=16, side=8, train=5, test=5), "scenes with 16 objects could be placed"),
        (ShadedShapes(objects=6, least=None, touching="never", side=8, train=5, test=5), "use fewer objects"),
        (Sprites(objects=2, least=3), "found 3"),
        (Tetrominoes(objects=1, touching="always"), "nothing to touch"),
    ],
)
def test_scenes_that_cannot_be_placed_are_refused(source: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        source()


@pytest.mark.parametrize("setting", [{"side": 4}, {"objects": 0}, {"colours": "blue"}, {"touching": "sometimes"}])
def test_bad_settings_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        Sprites(**setting)


def test_other_data_know_no_objects() -> None:
    with pytest.raises(SpecError, match="tetrominoes, sprites and shaded_shapes"):
        require_scenes(Digits()(), "here")
