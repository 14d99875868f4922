"""A complex autoencoder with real weights and a gate (Löwe et al., 2022), and the contrast of CtCAE (Stanić, 2023).

The image has the phase 0. Real weights act on both parts alike, biases are of magnitude and phase, and a gate compares
the magnitude of a sum with the sum of magnitudes. It has the layers of `syncx`.

CtCAE adds a term to the loss, `phase_contrast`: pixels whose features have similar magnitudes shall have similar
phases, others not. The objective `reconstruction` does not know it. Add it in a training of your own, with a weight of
1e-4 in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from expunge.base.part import Count
from expunge.core.contracts import Architecture
from expunge.core.data import Data
from expunge.models._gated_layers import GatedNet, lengths, unit
from expunge.models._scene_layout import layout, scene_shape

TEMPERATURE, NEAR, FAR = 0.05, 0.05, 0.5
"""Of the contrast, and the shares of pixels that count as similar to an anchor and as different from it."""


@dataclass(frozen=True)
class GatedComplexAE(Architecture):
    """A complex autoencoder with real weights, which runs once."""

    cite: ClassVar[tuple[str, ...]] = ("lowe2022complex", "stanic2023contrastive")

    width: Count = 11
    """Channels of the first and the last hidden layer; 11 has about as many weights as `syncx` at its default."""
    extra: bool = False
    """Whether a 1 x 1 layer follows the decoder."""

    def __call__(self, data: Data) -> GatedNet:
        """The module from images `[b, c, h, w]` in [0, 1] to their reconstructions.

        Raises:
            SpecError: The data are no images, are smaller than 15 x 15, or the objective does not want images.
        """
        layers = layout(scene_shape(data, "gated_complex_ae"), self.width, extra=self.extra)
        return GatedNet(layers, 2, polar=True)


def phase_contrast(z: Tensor, anchors: int, generator: torch.Generator) -> Tensor:
    """The contrast of phases in a feature map, as a loss: cross-entropy of one similar pixel among different ones.

    For each anchor, a pixel is drawn among the most similar ones by magnitudes, and the least similar ones are the
    others; their phases are compared by cosines.

    Args:
        z: Features `[b, 2, c, h, w]`.
        anchors: Number of anchors in each image.
        generator: Draws anchors and similar pixels, on the CPU.

    Returns:
        The mean over images and anchors.
    """
    addresses = F.normalize(lengths(z).flatten(2).mT, dim=2)
    phases = unit(z).flatten(2).mT / z.shape[2] ** 0.5
    pixels, images = addresses.shape[1], torch.arange(len(z), device=z.device)[:, None]
    at = torch.randint(pixels, (len(z), anchors), generator=generator).to(z.device)
    alike = (addresses[images, at] @ addresses.mT).detach()
    order = alike.scatter(2, at.unsqueeze(2), torch.inf).argsort(2, descending=True)
    near, far = max(round(NEAR * pixels), 1), max(round(FAR * pixels), 1)
    # The first of the order is the anchor itself.
    pick = torch.randint(1, min(near, pixels - 1) + 1, (len(z), anchors, 1), generator=generator).to(z.device)
    others = torch.cat([order.gather(2, pick), order[:, :, -far:]], 2)
    cosines = torch.einsum("bad,bapd->bap", phases[images, at], phases[images.unsqueeze(2), others])
    return -(cosines / TEMPERATURE).log_softmax(2)[..., 0].mean()
