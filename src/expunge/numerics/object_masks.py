"""Object masks from features of pixels, under two protocols, and how well they match true masks.

The published protocol (2405.17283) knows the true foreground and the true number of segments: features are set to 0 on
the background, and k-means has as many clusters as there are segments. The honest protocol knows neither: pixels that
are bright enough are foreground, and the number of clusters is the one with the largest silhouette.

Features are unit vectors: cosines and sines of phases. What has none, such as coordinates, gets a constant component,
so that the background is as far away as it is from phases.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from expunge.numerics.clustering import LEFT_OUT, clusters_by_silhouette, kmeans
from expunge.numerics.rand_index import adjusted_rand_index

Protocol = Literal["published", "honest"]
AT_ONCE = 64
"""Images that are segmented at once."""
BRIGHT = 0.1
"""Least brightness of the foreground, in the largest channel of an image in [0, 1]."""


def segments(
    features: Tensor,
    protocol: Protocol,
    generator: torch.Generator,
    *,
    true: Tensor | None = None,
    images: Tensor | None = None,
) -> Tensor:
    """The segment of each pixel.

    Args:
        features: `[b, d, h, w]`.
        protocol: What it may know.
        generator: Draws starts of k-means.
        true: True masks `[b, h, w]`, 0 for the background; for the published protocol.
        images: Images or reconstructions `[b, c, h, w]`, whose bright pixels are foreground; for the honest protocol.

    Returns:
        Labels `[b, h, w]` from 0, in no order. In the honest protocol the background has label 0.

    Raises:
        ValueError: The protocol lacks `true` or `images`.
    """
    known = true if protocol == "published" else images
    if known is None:
        raise ValueError("the published protocol needs the true masks, the honest one needs images")
    # Distances between all pixels of a few images at a time, because of their memory.
    parts = zip(features.split(AT_ONCE), known.split(AT_ONCE), strict=True)
    segment = _published if protocol == "published" else _honest
    return torch.cat([segment(by.flatten(2).mT, about, generator).view(-1, *by.shape[2:]) for by, about in parts])


def _published(points: Tensor, true: Tensor, generator: torch.Generator) -> Tensor:
    flat = true.flatten(1)
    counts = (F.one_hot(flat).sum(1) > 0).sum(1)
    return kmeans(points * (flat > 0).unsqueeze(2), counts, torch.ones_like(flat, dtype=torch.bool), generator)


def _honest(points: Tensor, images: Tensor, generator: torch.Generator) -> Tensor:
    return clusters_by_silhouette(points, foreground(images).flatten(1), generator) - LEFT_OUT


def foreground(images: Tensor) -> Tensor:
    """Pixels whose largest channel is bright: `[b, c, h, w]` to `[b, h, w]` bool."""
    return images.amax(1) >= BRIGHT


def scores(found: Tensor, true: Tensor) -> dict[str, Tensor]:
    """ARI-FULL over all pixels and ARI-FG over the pixels of true objects, of masks `[b, h, w]`: `[b]` each."""
    found, true = found.flatten(1), true.flatten(1)
    return {
        "full": adjusted_rand_index(true, found),
        "foreground": adjusted_rand_index(true, found, true > 0),
    }


def coordinates(images: Tensor) -> Tensor:
    """Row and column of each pixel in [-1, 1], and a constant, as features `[b, 3, h, w]`."""
    height, width = images.shape[2:]
    rows = torch.linspace(-1, 1, height).view(-1, 1).expand(height, width)
    columns = torch.linspace(-1, 1, width).view(1, -1).expand(height, width)
    grid = torch.stack([rows, columns, torch.full_like(rows, 2.0)])
    return grid.to(images).expand(len(images), -1, -1, -1)


def chromaticity(images: Tensor) -> Tensor:
    """Direction of each pixel's colour, and a constant, as features `[b, c + 1, h, w]`."""
    return torch.cat([F.normalize(images, dim=1, eps=1e-6), torch.ones_like(images[:, :1])], 1)


def clicks(found: Tensor, masks: Tensor) -> Tensor:
    """The segment that a click on each object hits: at the pixel of its mask that is closest to the mask's centre.

    Args:
        found: Segments `[b, h, w]`.
        masks: One object in each image, `[b, h, w]` bool, not empty.

    Returns:
        Labels, `[b]`.
    """
    weights = masks.float()
    places = [torch.arange(size, device=masks.device, dtype=torch.float32) for size in masks.shape[1:]]
    rows, columns = torch.meshgrid(*places, indexing="ij")
    distance = torch.zeros_like(weights)
    for at in (rows, columns):
        centre = (weights * at).sum((1, 2)) / weights.sum((1, 2))
        distance = distance + (at - centre[:, None, None]).square()
    closest = distance.masked_fill(~masks, torch.inf).flatten(1).argmin(1)
    return found.flatten(1).gather(1, closest.unsqueeze(1))[:, 0]


def painted_over(images: Tensor, region: Tensor, background: Tensor) -> Tensor:
    """Images whose region has the mean colour of the background; of all other pixels where there is no background.

    Args:
        images: `[b, c, h, w]`.
        region: `[b, h, w]` bool.
        background: `[b, h, w]` bool.
    """
    free = background & ~region
    free = torch.where(free.flatten(1).any(1)[:, None, None], free, ~region).unsqueeze(1)
    colour = (images * free).sum((2, 3)) / free.sum((2, 3)).clamp(min=1)
    return torch.where(region.unsqueeze(1), colour[..., None, None], images)
