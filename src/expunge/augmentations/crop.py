"""Shift every image by a few pixels: a crop of the padded image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from expunge.base.errors import SpecError
from expunge.base.part import Count
from expunge.core.contracts import Augmentation


@dataclass(frozen=True)
class Crop(Augmentation):
    """Each image is padded with zeros and cropped to its original size at a random place."""

    padding: Count = 4
    """Pixels added on every side; this is also the largest shift."""

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Images `[b, c, h, w]`, each shifted by up to `padding` pixels in both directions.

        Raises:
            SpecError: The inputs are not images.
        """
        if inputs.ndim != 4:
            raise SpecError(
                f"inputs have shape {list(inputs.shape)}", where="augmentation (crop)", allowed="[b, c, h, w]"
            )
        height, width = inputs.shape[2:]
        padded = F.pad(inputs, [self.padding] * 4)
        tops, lefts = torch.randint(0, 2 * self.padding + 1, (2, len(inputs)), generator=generator).tolist()
        places = zip(padded, tops, lefts, strict=True)
        return torch.stack([image[:, top : top + height, left : left + width] for image, top, left in places])
