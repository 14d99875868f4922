"""Mirror half of the images, left to right."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.base.part import Share
from expunge.core.contracts import Augmentation


@dataclass(frozen=True)
class Flip(Augmentation):
    """Each image of a batch is mirrored with a probability."""

    probability: Share = 0.5
    """Probability with which each image is mirrored."""

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Images `[b, ..., w]`, of which some are reversed in their last dimension."""
        flipped = torch.rand(len(inputs), generator=generator) < self.probability
        shape = [-1] + [1] * (inputs.ndim - 1)
        return torch.where(flipped.view(shape).to(inputs.device), inputs.flip(-1), inputs)
