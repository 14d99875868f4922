"""SynCx: a complex-valued autoencoder that runs several times and binds objects by phase (2405.17283).

The image is the magnitude of the input, and its phases start at random. An autoencoder with complex weights gives z;
the next input has the phases of z and again the magnitudes of the image. So only phases are carried on. Each |z| is
trained to be the image: the model returns all of them, and the objective `reconstruction` counts each in the loss and
measures the last. The phases of the decoder's last hidden layer tell which pixels belong together
(`expunge.numerics.phases`).

In training, initial phases are drawn for each image, pixel and channel. In evaluation all images have the same ones, so
that a model gives one answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from expunge.base.part import Count, Positive
from expunge.core.contracts import Architecture
from expunge.core.data import Data
from expunge.models._complex_layers import PolarConv, directions, magnitudes
from expunge.models._scene_layout import SceneLayout, layout, scene_shape
from expunge.numerics.phases import initial_phases

NONE = 1e-5
"""A magnitude that counts as 0."""
PhaseLaw = Literal["von_mises", "uniform", "zero"]


class Iteration(NamedTuple):
    """What one iteration gives, as pairs `[b, 2 c, h, w]` of real and imaginary parts."""

    output: Tensor
    features: Tensor
    """The decoder's last hidden layer."""

    @property
    def reconstruction(self) -> Tensor:
        """Magnitudes of the output, `[b, c, h, w]`."""
        return magnitudes(self.output)

    @property
    def phases(self) -> Tensor:
        """Cosines and sines of the output's phases, which the next iteration starts from, `[b, 2 c, h, w]`."""
        return directions(self.output)

    @property
    def bindings(self) -> Tensor:
        """Cosines and sines of the features' phases, `[b, 2 d, h, w]`: what phase clusters are made of."""
        return directions(self.features)


@dataclass(frozen=True)
class SynCx(Architecture):
    """About 16,000 real numbers at the default width; 0.96 M at the paper's 64."""

    cite: ClassVar[str] = "gopalakrishnan2024recurrent"

    width: Count = 8
    """Complex channels of the first and the last hidden layer; those between have twice as many. 64 in the paper."""
    iterations: Count = 3
    """How often the autoencoder runs; 4 in the paper for CLEVR."""
    phases: PhaseLaw = "von_mises"
    """Law of the initial phases: concentrated around 0, uniform, or all 0."""
    bottleneck: bool = True
    """Whether the encoder makes images smaller; without it, all layers keep the size."""
    extra: bool = False
    """Whether a 1 x 1 layer follows the decoder, as in the paper for images of 64 and 96 pixels."""
    output_scale: Positive = 1.0
    """Factor on the initial weights of the output layer; 1 in the paper. Less than 1 makes the first reconstructions
    darker: with small nets and few steps, the first large errors silence hidden layers."""
    weights: Literal["complex", "real"] = "complex"
    """Real weights, without biases of phases, treat real and imaginary parts alike."""

    def __call__(self, data: Data) -> SynCxNet:
        """The module from images `[b, c, h, w]` in [0, 1] to their reconstructions `[b, iterations, c, h, w]`.

        Raises:
            SpecError: The data are no images, are smaller than 15 x 15, or the objective does not want images.
        """
        shape = scene_shape(data, "syncx")
        layers = layout(shape, self.width, bottleneck=self.bottleneck, extra=self.extra)
        net = SynCxNet(layers, shape, self.iterations, self.phases, real=self.weights == "real")
        with torch.no_grad():
            net.output.weight.mul_(self.output_scale)
            net.output.magnitude_bias.mul_(self.output_scale)
        return net


class SynCxNet(nn.Module):
    """The recurrent autoencoder.

    Args:
        layers: Shapes of all layers.
        shape: Channels, height and width of an image.
        count: How often it runs.
        law: Law of the initial phases.
        real: Whether weights are real.
    """

    start: Tensor

    def __init__(
        self, layers: SceneLayout, shape: tuple[int, int, int], count: int, law: PhaseLaw, *, real: bool
    ) -> None:
        super().__init__()
        self.count, self.law = count, law
        self.encoder = nn.ModuleList(PolarConv(layer, real=real) for layer in layers.encoder)
        self.decoder = nn.ModuleList(PolarConv(layer, real=real) for layer in layers.decoder)
        self.output = PolarConv(layers.output, activated=False, real=real)
        fixed = initial_phases(law, (1, *shape), torch.Generator().manual_seed(0))
        self.register_buffer("start", fixed, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Magnitudes of every iteration, `[b, iterations, c, h, w]`."""
        return torch.stack([step.reconstruction for step in self.iterate(images)], 1)

    def iterate(self, images: Tensor, count: int | None = None, phases: Tensor | None = None) -> list[Iteration]:
        """All iterations.

        Args:
            images: `[b, c, h, w]`.
            count: How many; by default as many as in training.
            phases: Initial phases in radians, of the images' shape or `[1, c, h, w]`; by default drawn in training, and
                fixed in evaluation.
        """
        if phases is None:
            phases = initial_phases(self.law, images.shape, None, images.device) if self.training else self.start
        phases = phases.to(images)
        turned = torch.cat([phases.cos(), phases.sin()], 1).expand(len(images), -1, -1, -1)
        *hidden, last = [(layer, layer.kernel(images.dtype)) for layer in (*self.encoder, *self.decoder, self.output)]
        doubled, steps = images.repeat(1, 2, 1, 1), []
        for _ in range(count or self.count):
            features = turned * doubled
            for layer, kernel in hidden:
                features = layer(features, kernel)
            steps.append(Iteration(last[0](features, last[1]), features))
            # An output of 0 has no phase: its pixel keeps the one that it had.
            silent = (steps[-1].reconstruction < NONE).repeat(1, 2, 1, 1)
            turned = torch.where(silent, turned, steps[-1].phases)
        return steps

    def directions(self, images: Tensor) -> Tensor:
        """The last iteration's `bindings`, `[b, 2 d, h, w]`."""
        return self.iterate(images)[-1].bindings
