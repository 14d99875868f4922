"""Rotating Features: an autoencoder whose features are vectors, and whose directions bind objects (Löwe et al., 2023).

Beside the paper's it is small: it has the layers of `syncx`, and no dense layer between encoder and decoder. So the
three autoencoders of scenes differ only in what a layer computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import msgspec

from expunge.base.part import Count
from expunge.core.contracts import Architecture
from expunge.core.data import Data
from expunge.models._gated_layers import GatedNet
from expunge.models._scene_layout import layout, scene_shape


@dataclass(frozen=True)
class RotatingFeatures(Architecture):
    """An autoencoder with real weights and features of several components."""

    cite: ClassVar[str] = "lowe2023rotating"

    width: Count = 11
    """Channels of the first and the last hidden layer; 11 has about as many weights as `syncx` at its default."""
    dims: Annotated[int, msgspec.Meta(ge=2)] = 10
    """Components of a feature."""
    extra: bool = False
    """Whether a 1 x 1 layer follows the decoder."""

    def __call__(self, data: Data) -> GatedNet:
        """The module from images `[b, c, h, w]` in [0, 1] to their reconstructions.

        Raises:
            SpecError: The data are no images, are smaller than 15 x 15, or the objective does not want images.
        """
        layers = layout(scene_shape(data, "rotating_features"), self.width, extra=self.extra)
        return GatedNet(layers, self.dims, polar=False)
