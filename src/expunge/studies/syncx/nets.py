"""Autoencoders of the study, at matched numbers of weights, and what is read from each: segments and errors."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from expunge.base.seeds import derive
from expunge.core.contracts import Architecture
from expunge.core.modules import first_parameter
from expunge.core.scenes import Scenes
from expunge.models.conv_ae import ConvAE
from expunge.models.gated_complex_ae import GatedComplexAE, phase_contrast
from expunge.models.rotating_features import RotatingFeatures
from expunge.models.syncx import SynCxNet
from expunge.numerics.object_masks import Protocol, scores, segments
from expunge.numerics.real import real_size
from expunge.objectives.reconstruction import Reconstruction
from expunge.train.segmenter import Schedule, Term, train_autoencoder

PROTOCOLS: tuple[Protocol, ...] = ("published", "honest")
NONE = 1e-5
"""A magnitude that counts as 0."""
CONTRAST, ANCHORS = 1e-4, 64
"""Weight of CtCAE's contrast, as in its paper, and anchors in each image."""
RATES = {"syncx": 2e-3, "rotating features": 2e-2, "gated": 2e-2, "contrast": 2e-2, "real": 2e-3}
"""Of the rivals: the smallest error after 250 steps on seed 100, which is not reported, among 2e-3, 6e-3 and 2e-2. Of
SynCx: the largest rate that was stable there."""


@dataclass(frozen=True)
class NetReading:
    """What one net says of the test scenes."""

    ari: Mapping[str, float]
    """Mean index by protocol and pixels, such as `honest foreground`."""
    error: float
    """Mean squared error of the last reconstruction."""


def built(architecture: Architecture, scenes: Scenes, seed: int, device: str = "cpu") -> nn.Module:
    """A net with initial weights that the seed decides, on a device."""
    torch.manual_seed(derive(seed, "weights"))
    return architecture(scenes.judged_by(Reconstruction())).to(device)


def images_of(net: nn.Module, scenes: Scenes) -> Tensor:
    """The images of the test scenes, on the net's device."""
    images: Tensor = scenes.inputs[scenes.test]
    return images.to(first_parameter(net).device)


def size(net: nn.Module) -> int:
    """Number of real numbers among the weights."""
    return sum(real_size(parameter) for parameter in net.parameters())


def matched(architecture: Any, scenes: Scenes, count: int) -> Architecture:
    """The architecture at the width whose number of weights is the closest to `count`."""
    sizes: dict[int, int] = {}
    for width in range(1, 400):
        sizes[width] = size(replace(architecture, width=width)(scenes.judged_by(Reconstruction())))
        if sizes[width] > count:
            break
    best = min(sizes, key=lambda width: abs(sizes[width] - count))
    chosen: Architecture = replace(architecture, width=best)
    return chosen


def rivals(scenes: Scenes, dims: int, count: int) -> dict[str, Architecture]:
    """Nets of other kinds with about as many weights."""
    kinds = {
        "rotating features": RotatingFeatures(dims=dims),
        "gated": GatedComplexAE(),
        "contrast": GatedComplexAE(),
        "real": ConvAE(),
    }
    return {name: matched(kind, scenes, count) for name, kind in kinds.items()}


def trained(name: str, net: nn.Module, images: Tensor, schedule: Schedule, seed: int) -> float:
    """Train a net in place; what is random follows from the seed.

    Returns:
        Seconds of the process's time.
    """
    torch.manual_seed(derive(seed, "training"))
    batches = torch.Generator().manual_seed(derive(seed, "batches"))
    start = time.process_time()
    train_autoencoder(net, images, schedule, batches, term=_term(name, net, seed))
    return time.process_time() - start


def _term(name: str, net: Any, seed: int) -> Term | None:
    if name != "contrast":
        return None
    generator = torch.Generator().manual_seed(derive(seed, "anchors"))

    def contrast(images: Tensor) -> Tensor:
        _, features = net.features(images)
        return CONTRAST * phase_contrast(features, ANCHORS, generator)

    return contrast


@torch.no_grad()
def read(net: Any, scenes: Scenes, seed: int) -> NetReading:
    """Segments of the test scenes, by both protocols, and the error."""
    images = images_of(net.eval(), scenes)
    output = net(images)
    rebuilt = output[:, -1] if output.ndim > images.ndim else output
    ari = indices(net.directions(images).cpu(), scenes, seed)
    return NetReading(ari, float((rebuilt - images).square().mean()))


def indices(features: Tensor, scenes: Scenes, seed: int) -> dict[str, float]:
    """Mean index of the test scenes by protocol and pixels.

    Args:
        features: Of the test scenes, `[n, d, h, w]`.
        scenes: The data, with true masks.
        seed: Decides the starts of k-means.
    """
    masks, images = scenes.masks[scenes.test], scenes.inputs[scenes.test]
    found: dict[str, float] = {}
    for protocol in PROTOCOLS:
        generator = torch.Generator().manual_seed(derive(seed, "clusters"))
        labels = segments(features, protocol, generator, true=masks, images=images)
        found |= {f"{protocol} {pixels}": float(values.mean()) for pixels, values in scores(labels, masks).items()}
    return found


@torch.no_grad()
def by_iteration(net: SynCxNet, scenes: Scenes, count: int, seed: int) -> tuple[list[float], list[float]]:
    """Honest index of the foreground at each iteration, and how much the output's phases change from each to the next.

    The change is the mean angle in radians between a pixel's phases, over channels and pixels of objects, weighted by
    the magnitude of the image.
    """
    images, turns = images_of(net, scenes), []
    steps = net.iterate(images, count)
    found = [indices(step.bindings.cpu(), scenes, seed) for step in steps]
    weights = images * (scenes.masks[scenes.test] > 0).unsqueeze(1).to(images)
    for first, second in itertools.pairwise(steps):
        cosine = (first.phases * second.phases).unflatten(1, (2, -1)).sum(1)
        # An output of 0 has no phase.
        counted = weights * (first.reconstruction > NONE) * (second.reconstruction > NONE)
        turns.append(float((counted * cosine.clamp(-1, 1).arccos()).sum() / counted.sum().clamp(min=NONE)))
    return [values["honest foreground"] for values in found], turns


@torch.no_grad()
def wheel(net: SynCxNet, scenes: Scenes, count: int) -> list[dict[str, list[list[float]]]]:
    """Phase wheels of the first test scene: at each iteration, by object, both parts of the brightest channel."""
    images, masks = images_of(net, scenes)[:1], scenes.masks[scenes.test[0]]
    brightest = images[0].argmax(0, keepdim=True)
    wheels = []
    for step in net.iterate(images, count):
        parts = step.output.unflatten(1, (2, -1))[0]
        at = torch.stack([part.gather(0, brightest)[0] for part in parts]).cpu()
        names = {f"object {number}": masks == number for number in masks.unique().tolist() if number}
        wheels.append({name: at[:, mask].tolist() for name, mask in names.items()})
    return wheels
