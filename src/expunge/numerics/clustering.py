"""k-means and the silhouette of many small sets of points at once, each with its own number of clusters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from expunge.base.errors import SpecError

LEFT_OUT = -1
"""Label of a point that is not clustered."""
RESTARTS, ROUNDS = 5, 30
COUNTS = (2, 3, 4, 5, 6)
"""Numbers of clusters among which the silhouette chooses."""


def kmeans(
    points: Tensor, counts: Tensor, kept: Tensor, generator: torch.Generator, *, restarts: int = RESTARTS
) -> Tensor:
    """The clusters with the smallest squared distances to their means, the best of some starts (k-means++).

    Args:
        points: `[b, p, d]`.
        counts: Number of clusters in each set, `[b]`.
        kept: Which points are clustered, `[b, p]` bool.
        generator: Draws the starts, on the CPU.
        restarts: Number of starts.

    Returns:
        Labels from 0, and -1 for points that are not kept, `[b, p]`.

    Raises:
        SpecError: A number of clusters is not positive, or is larger than the number of kept points.
    """
    _check(points, counts, kept)
    many, numbers, included = (tensor.repeat_interleave(restarts, 0) for tensor in (points, counts, kept))
    labels, costs = _lloyd(many, _started(many, numbers, included, generator), numbers, included)
    best = costs.view(-1, restarts).argmin(1)
    chosen: Tensor = labels.unflatten(0, (-1, restarts))[torch.arange(len(points), device=points.device), best]
    return chosen.masked_fill(~kept, LEFT_OUT)


def _check(points: Tensor, counts: Tensor, kept: Tensor) -> None:
    room = kept.sum(1)
    wrong = ((counts < 1) | (counts > room)).nonzero().flatten()
    if len(wrong):
        at = int(wrong[0])
        raise SpecError(
            f"{int(counts[at])} clusters of {int(room[at])} points (set {at} of {len(points)})",
            where="counts",
            allowed="at least 1 cluster, and at most as many as there are points",
        )


def _started(points: Tensor, counts: Tensor, kept: Tensor, generator: torch.Generator) -> Tensor:
    """k-means++: each centre is a point, drawn by its squared distance from the centres before, `[b, k, d]`."""
    rows = torch.arange(len(points), device=points.device)
    chances, centres = kept.double(), []
    for _ in range(int(counts.max())):
        # Where all points lie on centres, any will do.
        usable = torch.where(chances.sum(1, keepdim=True) > 0, chances, kept.double())
        at = torch.multinomial(usable.cpu(), 1, generator=generator)[:, 0].to(points.device)
        centres.append(points[rows, at])
        distance = (points - centres[-1].unsqueeze(1)).double().square().sum(2) * kept
        chances = distance if len(centres) == 1 else torch.minimum(chances, distance)
    return torch.stack(centres, 1)


def _lloyd(points: Tensor, centres: Tensor, counts: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Labels `[b, p]` and sums of squared distances `[b]`."""
    number = centres.shape[1]
    beyond = torch.arange(number, device=points.device) >= counts.unsqueeze(1)
    labels = torch.full(points.shape[:2], LEFT_OUT, device=points.device)
    for _ in range(ROUNDS):
        distances = _squared(points, centres).masked_fill(beyond.unsqueeze(1), torch.inf)
        before, labels = labels, distances.argmin(2)
        if torch.equal(before, labels):
            break
        members = F.one_hot(labels, number).to(points) * kept.unsqueeze(2)
        sizes = members.sum(1).unsqueeze(2)
        centres = torch.where(sizes > 0, members.mT @ points / sizes.clamp(min=1), centres)
    closest = _squared(points, centres).masked_fill(beyond.unsqueeze(1), torch.inf).amin(2)
    return labels, (closest * kept).sum(1)


def _squared(points: Tensor, centres: Tensor) -> Tensor:
    products = points @ centres.mT
    squares: Tensor = points.square().sum(2, keepdim=True) + centres.square().sum(2).unsqueeze(1) - 2 * products
    return squares.clamp(min=0)


def silhouettes(distances: Tensor, labels: Tensor) -> Tensor:
    """The mean silhouette of each set (Rousseeuw, 1987): (b - a) / max(a, b) over its points.

    Here a is a point's mean distance to the others of its cluster, b that to the nearest other cluster. A point alone
    in its cluster counts 0.

    Args:
        distances: Between all points, `[b, p, p]`.
        labels: `[b, p]` from 0; -1 for points that do not count.

    Returns:
        `[b]`; minus infinity for a set with less than two clusters.
    """
    kept = labels != LEFT_OUT
    number = max(int(labels.max()) + 1, 1)
    members = F.one_hot(labels.clamp(min=0), number).to(distances) * kept.unsqueeze(2)
    sizes = members.sum(1).unsqueeze(1)
    sums = distances @ members
    own = labels.clamp(min=0).unsqueeze(2)
    own_size = sizes.expand_as(sums).gather(2, own)[..., 0]
    inside = sums.gather(2, own)[..., 0] / (own_size - 1).clamp(min=1)
    means = torch.where(sizes > 0, sums / sizes.clamp(min=1), torch.inf)
    outside = means.scatter(2, own, torch.inf).amin(2)
    values = torch.nan_to_num((outside - inside) / torch.maximum(inside, outside), nan=0.0)
    counted = torch.where(kept & (own_size > 1), values, 0.0).sum(1) / kept.sum(1).clamp(min=1)
    return torch.where((sizes[:, 0] > 0).sum(1) > 1, counted, -torch.inf)


def clusters_by_silhouette(
    points: Tensor, kept: Tensor, generator: torch.Generator, counts: Sequence[int] = COUNTS
) -> Tensor:
    """k-means clusters in the number that has the largest mean silhouette; labels as in `kmeans`.

    A set with less than three points is one cluster.
    """
    distances, room = torch.cdist(points, points), kept.sum(1)
    best = torch.full((len(points),), -torch.inf, dtype=points.dtype, device=points.device)
    labels = torch.where(kept, 0, LEFT_OUT)
    for count in counts:
        # A set with too few points takes part with one cluster, which has no silhouette.
        fits = room > count
        tried = labels.clone()
        if fits.any():
            wanted = torch.full((int(fits.sum()),), count, device=points.device)
            tried[fits] = kmeans(points[fits], wanted, kept[fits], generator)
        values = torch.where(fits, silhouettes(distances, tried), -torch.inf)
        labels = torch.where((values > best).unsqueeze(1), tried, labels)
        best = torch.maximum(best, values)
    return labels
