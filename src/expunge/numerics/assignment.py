"""Which units of one layer are which of another: linear assignment, also within the groups of a group norm.

Orders leave a grouped normalisation exact only where they map whole groups to whole groups. The best of those is found
exactly: first the best order inside every pair of groups, then the best pairing of groups by what these are worth.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def best_order(similarity: Tensor, groups: int = 1) -> Tensor:
    """The admissible order of the columns that makes the trace largest.

    Args:
        similarity: How much each unit here `[n]` looks like each unit there `[n]`; finite.
        groups: Number of equal consecutive groups that must stay together; 1 where every order is admissible.

    Returns:
        `order` `[n]`: unit `order[i]` there takes the place of unit `i` here.
    """
    if groups == 1:
        return _assigned(similarity)
    size = len(similarity) // groups
    # [here, there, unit here, unit there]
    blocks = similarity.reshape(groups, size, groups, size).transpose(1, 2)
    inside = torch.stack([torch.stack([_assigned(block) for block in row]) for row in blocks])
    worth = blocks.gather(3, inside.unsqueeze(3)).sum((2, 3))
    there = _assigned(worth)
    return (there.unsqueeze(1) * size + inside[torch.arange(groups), there]).flatten()


def random_order(units: int, groups: int, generator: torch.Generator) -> Tensor:
    """A uniformly drawn admissible order, `[units]`."""
    size = units // groups
    inside = torch.stack([torch.randperm(size, generator=generator) for _ in range(groups)])
    place = torch.randperm(groups, generator=generator)
    return (place.unsqueeze(1) * size + inside).flatten()


def worth(similarity: Tensor, order: Tensor) -> float:
    """What an order of the columns makes of the trace."""
    return float(similarity[torch.arange(len(order)), order].sum())


def _assigned(similarity: Tensor) -> Tensor:
    return torch.from_numpy(linear_sum_assignment(similarity.cpu().numpy(), maximize=True)[1])
