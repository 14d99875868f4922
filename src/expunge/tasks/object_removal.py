"""Forget one kind of object, and not the images in which it is: everything else in them is retained.

Each training scene with an object of the kind is split. The forget set has the scene as it is, with the only label
that the kind is there. The retain set has the scene without these objects, with all other labels. So the original
learns from both, and a retrained model has never seen an object of the kind. Test scenes with the kind are the
hold-out, and utility is measured on the others.

`render` says how objects go. `true` takes the generator's scene without them, which real data lack. With `phases` and
`coordinates`, the segment that a click hits is painted over with the colour of the background: segments are clusters of
a SynCx model's phases (2405.17283), which is trained on the training images without labels, or clusters of pixel
coordinates. The click is the visible pixel of the object that is closest to its centre.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from expunge.base.errors import SpecError
from expunge.base.part import Count, Natural
from expunge.base.seeds import derive
from expunge.core.case import Recipe
from expunge.core.contracts import Task
from expunge.core.data import IGNORE, Data
from expunge.core.generators import generator_of
from expunge.core.problem import Problem
from expunge.core.scenes import NOTHING, Scenes, require_scenes
from expunge.numerics.object_masks import clicks, coordinates, painted_over, segments
from expunge.tasks._split import class_index
from expunge.train.segmenter import Schedule, phase_segments, trained_syncx


@dataclass(frozen=True)
class ObjectRemoval(Task):
    """All objects of one kind, out of every training scene."""

    cite: ClassVar[str] = "gopalakrishnan2024recurrent"
    measures: ClassVar[bool] = True

    kind: Natural | str = 0
    """The kind to forget, by number or by name."""
    render: Literal["phases", "coordinates", "true"] = "phases"
    """Where scenes without the objects come from."""
    width: Count = 8
    """Width of the SynCx model, if `render` is `phases`."""
    steps: Count = 1500
    """Its training steps."""

    def measure(self, data: Data, recipe: Recipe, seed: int) -> Mapping[str, Tensor]:
        """Images of the training scenes with the kind, without its objects, `[b, 3, h, w]`."""
        scenes, kind = require_scenes(data, "forget (object_removal)"), self._kind(data)
        ids = _with(scenes, kind, scenes.train)
        if self.render == "true":
            return {"images": scenes.without(ids, scenes.kinds[ids] == kind)}
        images, generator = scenes.batch(ids).inputs, generator_of(seed, "object_removal")
        if self.render == "coordinates":
            found = segments(coordinates(images), "honest", generator, images=images)
        else:
            schedule = Schedule(steps=self.steps)
            net = trained_syncx(data, data.train, self.width, schedule, derive(seed, "object_removal"))
            found = phase_segments(net, images, generator)
        return {"images": removed(scenes, ids, kind, found)}

    def __call__(self, data: Data, seed: int, measured: Mapping[str, Tensor]) -> Problem:
        """The problem; its retained scenes without the objects have new ids, behind those of the data.

        Raises:
            SpecError: The data are no scenes, there is no such kind, or no training scene has it.
        """
        scenes, kind = require_scenes(data, "forget (object_removal)"), self._kind(data)
        forget = _with(scenes, kind, scenes.train)
        gone = scenes.kinds[forget] == kind
        new = torch.arange(len(scenes), len(scenes) + len(forget))
        targets = scenes.targets.clone()
        targets[forget] = IGNORE
        targets[forget, kind] = 1
        extended = replace(
            scenes,
            inputs=torch.cat([scenes.inputs, measured["images"]]),
            targets=torch.cat([targets, scenes.kinds_without(forget, gone)]),
            train=torch.cat([scenes.train, new]),
            cscore=None,
            groups=None if scenes.groups is None else torch.cat([scenes.groups, scenes.groups[forget]]),
            shades=torch.cat([scenes.shades, scenes.shades[forget] * (~gone)[..., None, None].to(torch.uint8)]),
            colours=torch.cat([scenes.colours, scenes.colours[forget]]),
            backdrop=torch.cat([scenes.backdrop, scenes.backdrop[forget]]),
            kinds=torch.cat([scenes.kinds, scenes.kinds[forget].masked_fill(gone, NOTHING)]),
        )
        retain = extended.train[~torch.isin(extended.train, forget)]
        holdout = _with(scenes, kind, scenes.test, where="")
        test = scenes.test[~torch.isin(scenes.test, holdout)]
        return Problem(extended, forget, retain, test, holdout=holdout)

    def _kind(self, data: Data) -> int:
        return class_index(self.kind, data, "forget.kind")


def _with(scenes: Scenes, kind: int, ids: Tensor, where: str = "forget.kind") -> Tensor:
    """Those of the ids whose scenes have the kind."""
    having = ids[(scenes.kinds[ids] == kind).any(1)]
    if where and not len(having):
        raise SpecError(f"no training scene has the kind {scenes.labels[kind]!r}", where=where)
    return having


def removed(scenes: Scenes, ids: Tensor, kind: int, found: Tensor) -> Tensor:
    """Images of scenes in which the segments of all objects of a kind are painted over.

    Args:
        scenes: The data.
        ids: Scenes, `[b]`.
        kind: Which objects go.
        found: Segments of these scenes, `[b, h, w]`, 0 for the background.
    """
    images: Tensor = scenes.batch(ids).inputs
    masks = scenes.masks[ids]
    for number in range(scenes.kinds.shape[1]):
        hit = (scenes.kinds[ids, number] == kind) & (masks == number + 1).flatten(1).any(1)
        if hit.any():
            region = found[hit] == clicks(found[hit], masks[hit] == number + 1)[:, None, None]
            images[hit] = painted_over(images[hit], region, found[hit] == 0)
    return images
