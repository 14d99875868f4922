"""Which object of a scene carries what is to be forgotten: the gradient of the loss, pooled in segments of the image.

The saliency of a pixel is the size of the gradient of the forget example's loss by it. Pooled in a segment, it is the
segment's mean; the segment with the largest one is the answer. Segments are clusters of a SynCx model's phases
(2405.17283), which is trained here on the training images without labels, or clusters of coordinates. Single pixels are
the third way: the answer is the smallest set of pixels with half of the saliency.

The true mask is that of the objects that the forget example's labels are about. The pointing game is the share of the
most salient pixels (of a whole segment, which are equal) that are inside the mask; the other measure is the
intersection of answer and mask over their union.

It needs scenes whose forget examples are labelled by some of their objects only, as the task `object_removal` makes
them. It is not among the diagnostics that run by default: see `docs/objects.md`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.base.part import Count
from expunge.base.seeds import derive
from expunge.core.case import Case
from expunge.core.contracts import Diagnostic
from expunge.core.data import Batch, Data
from expunge.core.generators import generator_of
from expunge.core.objective import Objective
from expunge.core.scenes import Scenes, require_scenes
from expunge.evidence.estimate import Estimate, over_examples
from expunge.numerics.object_masks import coordinates, segments
from expunge.train.segmenter import Schedule, phase_segments, trained_syncx

WAYS = ("phases", "coordinates", "pixels")
POINTING, OVERLAP = "pointing game", "intersection over union"


@dataclass(frozen=True)
class ObjectAttribution(Diagnostic):
    """Saliency of objects, by phase clusters, coordinate clusters and single pixels."""

    cite: ClassVar[str] = "gopalakrishnan2024recurrent"
    by_default: ClassVar[bool] = False

    examples: Count = 100
    """Forget examples to look at."""
    width: Count = 8
    """Width of the SynCx model."""
    steps: Count = 1500
    """Its training steps."""

    def repeats(self, data: Data) -> bool:
        """No: each call trains a model."""
        return False

    def __call__(self, case: Case, seed: int) -> dict[str, Estimate]:
        """Both measures of each way, as means over examples with 90 % intervals.

        Raises:
            SpecError: The data are no scenes, or the forget examples do not say which of their objects count.
        """
        problem = case.problem
        scenes = require_scenes(problem.data, "object_attribution")
        generator = generator_of(seed, "object_attribution")
        ids = problem.forget[torch.randperm(len(problem.forget), generator=generator)[: self.examples]]
        carriers = _carriers(scenes, ids)
        batch = scenes.batch(ids)
        heat = saliency(case.original, problem.objective, batch)
        net = trained_syncx(
            scenes, problem.train, self.width, Schedule(steps=self.steps), derive(seed, "object_attribution")
        )
        by_place = segments(coordinates(batch.inputs), "honest", generator, images=batch.inputs)
        answers = {
            "phases": pooled(heat, phase_segments(net, batch.inputs, generator)),
            "coordinates": pooled(heat, by_place),
            "pixels": (heat == heat.amax((1, 2), keepdim=True), half_of(heat)),
        }
        return {
            f"{measure}, {way}": over_examples(values.double().numpy(), "share", "reference")
            for way, (pointed, answer) in answers.items()
            for measure, values in (
                (POINTING, inside(pointed, carriers)),
                (OVERLAP, overlap(answer, carriers)),
            )
        }

    def summary(self, estimates: Mapping[str, Estimate]) -> str:
        """How often each way points at the right object, and whether phases are better than coordinates."""
        points = {way: estimates[f"{POINTING}, {way}"] for way in WAYS}
        shares = ", ".join(f"{100 * points[way].value:.0f} % by {way}" for way in WAYS)
        better = points["phases"].low > points["coordinates"].high
        end = "Phases are better than coordinates." if better else "Phases are not shown to be better than coordinates."
        return f"The most salient pixels are on the object that is to be forgotten in {shares}. {end}"


def saliency(model: nn.Module, objective: Objective, batch: Batch) -> Tensor:
    """Absolute gradient of each example's loss by its pixels, summed over channels: `[b, h, w]`, on the CPU."""
    fixed = copy.deepcopy(model).eval().requires_grad_(False)
    images = batch.inputs.clone().requires_grad_()
    losses = objective.losses(fixed, batch._replace(inputs=images))
    gradient: Tensor = torch.autograd.grad(losses.sum(), images)[0]
    return gradient.abs().sum(1).cpu()


def named_objects(scenes: Scenes, ids: Tensor, where: str) -> Tensor:
    """The objects whose kind is a known label of the example, `[b, k]` bool.

    Raises:
        SpecError: The examples are labelled by all of their objects.
    """
    kinds = scenes.kinds[ids]
    named = (scenes.targets[ids] == 1).gather(1, kinds.clamp(min=0)) & (kinds >= 0)
    if bool((named == (kinds >= 0)).all()):
        raise SpecError(
            "the forget examples are labelled by all of their objects",
            where=where,
            allowed="examples labelled by the objects that are to be forgotten",
            remedy='use the task object_removal: [forget] with name = "object_removal"',
        )
    return named


def _carriers(scenes: Scenes, ids: Tensor) -> Tensor:
    """Pixels of the named objects, `[b, h, w]` bool."""
    named = named_objects(scenes, ids, "object_attribution")
    numbers = torch.arange(1, named.shape[1] + 1)[:, None, None]
    return ((scenes.masks[ids].unsqueeze(1) == numbers) & named[..., None, None]).any(1)


def pooled(heat: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """The segment with the largest mean saliency, twice: as what is pointed at, and as the answer, `[b, h, w]` bool."""
    flat, values = found.flatten(1), heat.flatten(1)
    sums = torch.zeros(len(flat), int(flat.max()) + 1).scatter_add(1, flat, values)
    sizes = torch.zeros_like(sums).scatter_add(1, flat, torch.ones_like(values))
    best = torch.where(sizes > 0, sums / sizes.clamp(min=1), -torch.inf).argmax(1)
    region = found == best[:, None, None]
    return region, region


def half_of(heat: Tensor) -> Tensor:
    """The most salient pixels that hold half of the saliency together, `[b, h, w]` bool."""
    values, order = heat.flatten(1).sort(1, descending=True)
    before = values.cumsum(1) - values
    chosen = before < values.sum(1, keepdim=True) / 2
    return torch.zeros_like(chosen).scatter(1, order, chosen).view(heat.shape)


def inside(region: Tensor, masks: Tensor) -> Tensor:
    """Share of each region that is in the mask."""
    return (region & masks).sum((1, 2)) / region.sum((1, 2)).clamp(min=1)


def overlap(region: Tensor, masks: Tensor) -> Tensor:
    """Intersection over union of each region and mask."""
    return (region & masks).sum((1, 2)) / (region | masks).sum((1, 2)).clamp(min=1)
