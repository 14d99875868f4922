"""Match the units of two layers by linear assignment, also within the groups of a group norm.

An order keeps a group norm exact only if it maps whole groups to whole groups. The best of these orders is computed
exactly: first the best order inside every pair of groups, then the best pairing of groups by the resulting values.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def best_order(similarity: Tensor, groups: int = 1) -> Tensor:
    """The admissible order of the columns with the largest trace.

    Args:
        similarity: Similarity of each unit of the first layer with each unit of the second, `[n, n]`; finite.
        groups: Number of equal consecutive groups that must stay together; 1 if every order is admissible.

    Returns:
        `order` `[n]`: unit `order[i]` of the second layer is matched with unit `i` of the first.
    """
    if groups == 1:
        return _assigned(similarity)
    size = len(similarity) // groups
    # [group of the first layer, group of the second, unit of the first, unit of the second]
    blocks = similarity.reshape(groups, size, groups, size).transpose(1, 2)
    inside = torch.stack([torch.stack([_assigned(block) for block in row]) for row in blocks])
    worth = blocks.gather(3, inside.unsqueeze(3)).sum((2, 3))
    paired = _assigned(worth)
    return (paired.unsqueeze(1) * size + inside[torch.arange(groups), paired]).flatten()


def random_order(units: int, groups: int, generator: torch.Generator) -> Tensor:
    """A uniformly drawn admissible order, `[units]`."""
    size = units // groups
    inside = torch.stack([torch.randperm(size, generator=generator) for _ in range(groups)])
    place = torch.randperm(groups, generator=generator)
    return (place.unsqueeze(1) * size + inside).flatten()


def worth(similarity: Tensor, order: Tensor) -> float:
    """The trace under an order of the columns."""
    return float(similarity[torch.arange(len(order)), order].sum())


def _assigned(similarity: Tensor) -> Tensor:
    return torch.from_numpy(linear_sum_assignment(similarity.cpu().numpy(), maximize=True)[1])
