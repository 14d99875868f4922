"""Clusters, silhouettes and the Rand index against scikit-learn; both protocols against masks that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, silhouette_score

from expunge.base.errors import SpecError
from expunge.numerics.clustering import LEFT_OUT, clusters_by_silhouette, kmeans, silhouettes
from expunge.numerics.object_masks import chromaticity, clicks, coordinates, painted_over, scores, segments
from expunge.numerics.rand_index import adjusted_rand_index


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(counts: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Points `[b, 60, 3]` around this many centres each, and their centres' numbers."""
    generator = seeded(seed)
    labels = torch.stack([torch.arange(60) % count for count in counts])
    centres = 6 * torch.eye(3)[torch.arange(6) % 3] * torch.where(torch.arange(6) < 3, 1, -1)[:, None]
    return centres[labels] + torch.randn(len(counts), 60, 3, generator=generator), labels


def test_the_rand_index_is_scikit_learns() -> None:
    generator = seeded()
    first, second = torch.randint(0, 4, (2, 30, 25), generator=generator)
    second[:10] = (first[:10] + 1) % 4
    kept = torch.rand(30, 25, generator=generator) > 0.3
    found, masked = adjusted_rand_index(first, second), adjusted_rand_index(first, second, kept)
    for row in range(30):
        a, b, k = first[row].numpy(), second[row].numpy(), kept[row].numpy()
        assert float(found[row]) == pytest.approx(adjusted_rand_score(a, b), abs=1e-12)
        assert float(masked[row]) == pytest.approx(adjusted_rand_score(a[k], b[k]), abs=1e-12)
    one = torch.zeros(1, 25, dtype=torch.int64)
    assert float(adjusted_rand_index(one, one)) == adjusted_rand_score(one[0], one[0]) == 1.0


def test_clusters_cost_no_more_than_scikit_learns() -> None:
    points, _ = blobs([2, 3, 5, 6])
    counts, kept = torch.tensor([2, 4, 5, 3]), torch.rand(4, 60, generator=seeded(1)) > 0.2
    labels = kmeans(points, counts, kept, seeded(), restarts=20)
    assert ((labels == LEFT_OUT) == ~kept).all()
    for row, count in enumerate(counts.tolist()):
        rows, own = points[row][kept[row]].double().numpy(), labels[row][kept[row]].numpy()
        cost = sum(((rows[own == k] - rows[own == k].mean(0)) ** 2).sum() for k in np.unique(own))
        assert cost <= 1.02 * KMeans(count, n_init=10, random_state=0).fit(rows).inertia_
        assert len(np.unique(own)) == count


def test_silhouettes_are_scikit_learns() -> None:
    points, labels = blobs([2, 3, 5])
    labels[0, :7] = LEFT_OUT
    labels[1, 8] = 4  # alone in its cluster
    found = silhouettes(torch.cdist(points, points).double(), labels)
    for row in range(3):
        kept = labels[row] != LEFT_OUT
        expected = silhouette_score(points[row][kept].numpy(), labels[row][kept].numpy())
        assert float(found[row]) == pytest.approx(expected, abs=1e-5)


def test_the_silhouette_counts_clusters() -> None:
    counts = [2, 3, 5, 6]
    points, true = blobs(counts)
    points = points + 6 * torch.eye(3)[0]
    labels = clusters_by_silhouette(points, torch.ones(4, 60, dtype=torch.bool), seeded())
    assert [len(row.unique()) for row in labels] == counts
    assert (adjusted_rand_index(true, labels) == 1).all()
    few = clusters_by_silhouette(points[:1], torch.arange(60)[None] < 2, seeded())
    assert few[0, :2].tolist() == [0, 0] and (few[0, 2:] == LEFT_OUT).all()


@pytest.mark.parametrize(("count", "points"), [(7, 6), (0, 6), (-1, 6), (1, 0), (61, 60)])
def test_more_clusters_than_pixels_are_refused(count: int, points: int) -> None:
    kept = torch.arange(60)[None] < points
    with pytest.raises(SpecError, match=f"{count} clusters of {points} points"):
        kmeans(torch.randn(1, 60, 2), torch.tensor([count]), kept, seeded())


def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """Two images with a red and a green square on black, and the masks."""
    masks = torch.zeros(2, 12, 12, dtype=torch.int64)
    masks[:, 1:5, 1:5], masks[0, 6:11, 6:11], masks[1, 7:10, 2:6] = 1, 2, 2
    colours = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    return colours[masks].movedim(-1, 1), masks


@pytest.mark.parametrize("protocol", ["published", "honest"])
def test_clear_scenes_are_segmented_by_colour(protocol: str) -> None:
    images, masks = scene()
    found = segments(chromaticity(images), protocol, seeded(), true=masks, images=images)
    assert all((values == 1).all() for values in scores(found, masks).values())
    # Equal features tell nothing apart: objects are one segment, and the index of the foreground is at chance.
    alike = torch.ones_like(images)
    same = scores(segments(alike, protocol, seeded(), true=masks, images=images), masks)
    assert (same["foreground"].abs() < 0.05).all()


def test_coordinates_tell_distant_objects_apart() -> None:
    images, masks = scene()
    found = segments(coordinates(images), "published", seeded(), true=masks)
    assert (scores(found, masks)["foreground"] > 0.9).all()


def test_the_honest_protocol_does_not_see_the_mask() -> None:
    images, masks = scene()
    with pytest.raises(ValueError, match="honest one needs images"):
        segments(chromaticity(images), "honest", seeded(), true=masks)
    with pytest.raises(ValueError, match="needs the true masks"):
        segments(chromaticity(images), "published", seeded(), images=images)


def test_a_click_removes_the_object_that_it_hits() -> None:
    images, masks = scene()
    hit = clicks(masks, masks == 2)
    assert hit.tolist() == [2, 2]
    painted = painted_over(images, masks == hit[:, None, None], masks == 0)
    expected = torch.where((masks == 2).unsqueeze(1), 0.0, images)
    assert torch.equal(painted, expected)
    # A ring does not hold its centre: the click is on the ring.
    ring = torch.zeros(1, 5, 5, dtype=torch.bool)
    ring[0, 0], ring[0, -1], ring[0, :, 0], ring[0, :, -1] = True, True, True, True
    assert clicks(ring.long(), ring).item() == 1
