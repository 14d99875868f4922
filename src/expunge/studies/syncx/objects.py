"""Objects instead of images: scenes with a segment painted over, and which segment a classifier's label depends on."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from expunge.base.seeds import derive
from expunge.core.case import train_model
from expunge.core.data import IGNORE
from expunge.core.scenes import Scenes
from expunge.diagnostics.object_attribution import inside, overlap, pooled, saliency
from expunge.models.cnn import CNN
from expunge.numerics.object_masks import chromaticity, clicks, coordinates, painted_over, segments
from expunge.studies.syncx.nets import images_of
from expunge.train.evaluation import DataWithObjective, measured
from expunge.train.training import TrainedRecipe, Training

RATE = 3e-3
"""Of the classifier's training, by Adam."""


def honest_segments(net: Any, scenes: Scenes, seed: int) -> dict[str, Tensor]:
    """Segments of the test scenes by phases, coordinates and colour, with the foreground from the images."""
    images = scenes.inputs[scenes.test]
    with torch.no_grad():
        features = {
            "phases": net.directions(images_of(net, scenes)).cpu(),
            "coordinates": coordinates(images),
            "colour": chromaticity(images),
        }
    starts = {name: torch.Generator().manual_seed(derive(seed, "objects")) for name in features}
    return {name: segments(by, "honest", starts[name], images=images) for name, by in features.items()}


def removal_errors(found: dict[str, Tensor], scenes: Scenes) -> dict[str, float]:
    """Mean squared error of test scenes whose first object is painted over, against those without it."""
    ids, first = scenes.test, torch.zeros(len(scenes.test), scenes.kinds.shape[1], dtype=torch.bool)
    first[:, 0] = True
    images, mask, true = scenes.inputs[ids], scenes.masks[ids] == 1, scenes.without(ids, first)
    errors = {"untouched": float((images - true).square().mean())}
    for name, labels in found.items():
        region = labels == clicks(labels, mask)[:, None, None]
        errors[name] = float((painted_over(images, region, labels == 0) - true).square().mean())
    return errors


def attribution(found: dict[str, Tensor], scenes: Scenes, epochs: int, seed: int) -> dict[str, Any]:
    """Train a classifier of kinds; for the first object's kind in each test scene, find what it depends on.

    Returns:
        By way of segmenting, the pointing game and the overlap with the objects of that kind; and the classifier's
        share of right labels.
    """
    recipe = TrainedRecipe(CNN(), Training(epochs=epochs, learning_rate=RATE), scenes)
    model = train_model(recipe, scenes, scenes.train, derive(seed, "classifier"))
    ids, kind = scenes.test, scenes.kinds[scenes.test, 0]
    batch = scenes.batch(ids)
    only = torch.full_like(batch.targets, IGNORE).scatter(1, kind.unsqueeze(1), 1)
    heat = saliency(model, scenes.objective, batch._replace(targets=only))
    numbers = torch.arange(1, scenes.kinds.shape[1] + 1)[:, None, None]
    same = (scenes.kinds[ids] == kind.unsqueeze(1))[..., None, None]
    carriers = ((scenes.masks[ids].unsqueeze(1) == numbers) & same).any(1)
    right = measured(model, DataWithObjective(scenes, scenes.objective), ids)["accuracy"]
    found_by: dict[str, Any] = {"right labels": float(right.mean())}
    for name, labels in found.items():
        region, _ = pooled(heat, labels)
        hit, share = inside(region, carriers), overlap(region, carriers)
        found_by[name] = {"pointing": float(hit.mean()), "overlap": float(share.mean())}
    return found_by


def decades(larger: float, smaller: float) -> float:
    """Decimal logarithm of the ratio; errors below 1e-9 count as 1e-9."""
    return math.log10(max(larger, 1e-9) / max(smaller, 1e-9))
