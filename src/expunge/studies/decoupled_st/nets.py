"""Nets of the study, many side by side: every weight has a leading dimension for the net, and losses are one a net.

`Autoencoder`: bits between two layers each way, cross-entropy of pixels. `CategoricalVAE`: the same with categories and
the divergence of q(z|x) from uniform choices. `BinaryNet`: a classifier whose hidden units are random bits. `GateNet`:
layers of gates with two inputs, each of which chooses one of the sixteen functions of two bits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from expunge.numerics.estimators import Pathwise, all_choices
from expunge.studies.decoupled_st.images import Images

Weights = dict[str, Tensor]
Readings = dict[str, Tensor]
"""By name, one number a net."""
TEST_DRAWS = 4
"""Choices for each test image."""


@dataclass(frozen=True)
class DiscreteNet(ABC):
    """An architecture for some images."""

    images: Images
    hidden: int

    @abstractmethod
    def weights(self, generator: torch.Generator) -> Weights:
        """Initial weights of one net."""

    @abstractmethod
    def losses(self, weights: Weights, rows: Tensor, choice: Pathwise, generator: torch.Generator) -> Tensor:
        """Mean loss of each net on the training images `rows`, `[nets]`."""

    @abstractmethod
    def read(self, weights: Weights, choice: Pathwise, generator: torch.Generator) -> Readings:
        """The test `loss`, and other numbers that this architecture has."""


def layer(inputs: int, outputs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Weights `[inputs, outputs]` and biases `[1, outputs]`, as `nn.Linear` draws them."""
    bound = 1 / math.sqrt(inputs)
    drawn = torch.rand(inputs + 1, outputs, generator=generator).mul_(2 * bound).sub_(bound)
    return drawn[:-1], drawn[-1:]


def chain(widths: dict[str, tuple[int, int]], generator: torch.Generator) -> Weights:
    """Layers by name."""
    weights: Weights = {}
    for name, (inputs, outputs) in widths.items():
        weights[name], weights[f"{name} bias"] = layer(inputs, outputs, generator)
    return weights


def apply(weights: Weights, name: str, inputs: Tensor) -> Tensor:
    """One layer of all nets: `[nets, n, inputs]` to `[nets, n, outputs]`."""
    return torch.baddbmm(weights[f"{name} bias"], inputs, weights[name])


def pixel_loss(logits: Tensor, pixels: Tensor) -> Tensor:
    """Cross-entropy, a sum over pixels: `[...]`."""
    return F.binary_cross_entropy_with_logits(logits, pixels.expand_as(logits), reduction="none").sum(-1)


def spread(pixels: Tensor, weights: Weights) -> Tensor:
    """The same images for every net, `[nets, n, d]`."""
    return pixels.expand(len(next(iter(weights.values()))), *pixels.shape)


@dataclass(frozen=True)
class Autoencoder(DiscreteNet):
    """Binary code."""

    code: int = 24
    """Number of bits."""

    @property
    def latent(self) -> int:
        """Number of logits."""
        return self.code

    def weights(self, generator: torch.Generator) -> Weights:
        pixels = self.images.train.shape[1]
        widths = {"in": (pixels, self.hidden), "code": (self.hidden, self.latent)}
        return chain(widths | {"out": (self.latent, self.hidden), "pixels": (self.hidden, pixels)}, generator)

    def encode(self, weights: Weights, pixels: Tensor) -> Tensor:
        """Logits of the code, `[nets, n, latent]`."""
        return apply(weights, "code", torch.relu(apply(weights, "in", spread(pixels - 0.5, weights))))

    def decode(self, weights: Weights, code: Tensor) -> Tensor:
        """Logits of pixels."""
        return apply(weights, "pixels", torch.relu(apply(weights, "out", code)))

    def losses(self, weights: Weights, rows: Tensor, choice: Pathwise, generator: torch.Generator) -> Tensor:
        return self.terms(weights, self.images.train[rows], choice, generator)["loss"]

    def read(self, weights: Weights, choice: Pathwise, generator: torch.Generator) -> Readings:
        return self.terms(weights, self.images.test.repeat(TEST_DRAWS, 1), choice, generator)

    def terms(self, weights: Weights, pixels: Tensor, choice: Pathwise, generator: torch.Generator) -> Readings:
        """The loss of each net on these images."""
        bits = choice.bernoulli(self.encode(weights, pixels), generator)
        return {"loss": pixel_loss(self.decode(weights, bits), pixels).mean(1)}


@dataclass(frozen=True)
class CategoricalVAE(Autoencoder):
    """Categories as code; the loss is the negative evidence bound."""

    code: int = 6
    categories: int = 4

    @property
    def latent(self) -> int:
        return self.code * self.categories

    def terms(self, weights: Weights, pixels: Tensor, choice: Pathwise, generator: torch.Generator) -> Readings:
        """Loss, and its part for the reconstruction of the images."""
        logits = self.encode(weights, pixels).unflatten(-1, (self.code, self.categories))
        rebuilt = pixel_loss(self.decode(weights, choice(logits, generator).flatten(-2)), pixels).mean(1)
        log_q = F.log_softmax(logits / choice.forward, -1)
        divergence = (log_q.exp() * (log_q + math.log(self.categories))).sum((-2, -1)).mean(1)
        return {"loss": rebuilt + divergence, "reconstruction": rebuilt}

    def read(self, weights: Weights, choice: Pathwise, generator: torch.Generator) -> Readings:
        return super().read(weights, choice, generator) | {"generation": self.surprise(weights)}

    def surprise(self, weights: Weights) -> Tensor:
        """Exact -log p(x) of test images, if codes are uniform: what the decoder generates, without the encoder."""
        pixels = self.images.test
        states = all_choices(self.code, self.categories, like=pixels).flatten(1)
        logits = self.decode(weights, spread(states, weights))
        # log p(x|z) is x . l - sum softplus(l).
        joint = pixels @ logits.transpose(1, 2) - F.softplus(logits).sum(-1).unsqueeze(1)
        return math.log(len(states)) - joint.logsumexp(-1).mean(1)

    def by_codes(self, weights: Weights, pixels: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The first net's logits for these images, `[n, N, C]`, and the pixels' loss of choices `[..., n, N, C]`."""
        logits = self.encode(weights, pixels)[0].unflatten(-1, (self.code, self.categories))

        def loss(choices: Tensor) -> Tensor:
            rows = choices.flatten(-2).flatten(0, -2).unsqueeze(0)
            return pixel_loss(self.decode(weights, rows)[0].view(*choices.shape[:-2], -1), pixels)

        return logits, loss


@dataclass(frozen=True)
class BinaryNet(DiscreteNet):
    """Random bits as hidden units."""

    def weights(self, generator: torch.Generator) -> Weights:
        classes = int(self.images.train_labels.max()) + 1
        return chain({"in": (self.images.train.shape[1], self.hidden), "out": (self.hidden, classes)}, generator)

    def losses(self, weights: Weights, rows: Tensor, choice: Pathwise, generator: torch.Generator) -> Tensor:
        outputs = self._outputs(weights, self.images.train[rows], choice, generator)
        return _cross_entropy(outputs, self.images.train_labels[rows]).mean(1)

    def read(self, weights: Weights, choice: Pathwise, generator: torch.Generator) -> Readings:
        pixels, labels = self.images.test.repeat(TEST_DRAWS, 1), self.images.test_labels.repeat(TEST_DRAWS)
        outputs = self._outputs(weights, pixels, choice, generator)
        return {"loss": _cross_entropy(outputs, labels).mean(1), **_accuracy(outputs, labels)}

    def _outputs(self, weights: Weights, pixels: Tensor, choice: Pathwise, generator: torch.Generator) -> Tensor:
        logits = apply(weights, "in", spread(pixels - 0.5, weights))
        return apply(weights, "out", choice.bernoulli(logits, generator))


@dataclass(frozen=True)
class GateNet(DiscreteNet):
    """Two layers of gates and a count of the ones in each class's group; `hidden` is the number of gates a layer."""

    sharpness: ClassVar[float] = 4.0
    """Counts are divided by their group's size and multiplied by this, times the root of the size."""

    def weights(self, generator: torch.Generator) -> Weights:
        weights = {}
        for name, inputs in (("first", self.images.train.shape[1]), ("second", self.hidden)):
            weights[name] = torch.randn(self.hidden, 16, generator=generator)
            # Fixed: never trained, but every net of a seed has the same.
            weights[f"{name} wires"] = torch.randint(0, inputs, (2, self.hidden), generator=generator)
        return weights

    def losses(self, weights: Weights, rows: Tensor, choice: Pathwise, generator: torch.Generator) -> Tensor:
        gates = {name: choice(weights[name], generator) for name in ("first", "second")}
        return _cross_entropy(
            self._outputs(weights, gates, self.images.train[rows]), self.images.train_labels[rows]
        ).mean(1)

    def read(self, weights: Weights, choice: Pathwise, generator: torch.Generator) -> Readings:
        gates = {name: F.one_hot(weights[name].argmax(-1), 16).float() for name in ("first", "second")}
        outputs = self._outputs(weights, gates, self.images.test)
        labels = self.images.test_labels
        return {"loss": _cross_entropy(outputs, labels).mean(1), **_accuracy(outputs, labels)}

    def _outputs(self, weights: Weights, gates: Weights, pixels: Tensor) -> Tensor:
        signals = spread(pixels, weights)
        for name in ("first", "second"):
            wires = weights[f"{name} wires"][0]
            a, b = signals[..., wires[0]], signals[..., wires[1]]
            # Each of the sixteen functions is c_0 + c_1 a + c_2 b + c_3 a b.
            c = (gates[name] @ FUNCTIONS).transpose(1, 2).unsqueeze(-2)
            signals = c[:, 0] + c[:, 1] * a + c[:, 2] * b + c[:, 3] * (a * b)
        classes = int(self.images.train_labels.max()) + 1
        groups = signals[..., : self.hidden // classes * classes].unflatten(-1, (classes, -1))
        logits: Tensor = self.sharpness * math.sqrt(groups.shape[-1]) * groups.mean(-1)
        return logits


def _functions() -> Tensor:
    """Coefficients of 1, a, b and a b of every function of two bits, `[16, 4]`."""
    table = torch.tensor([[(code >> place) & 1 for place in range(4)] for code in range(16)], dtype=torch.float32)
    f00, f01, f10, f11 = table.unbind(1)
    return torch.stack([f00, f10 - f00, f01 - f00, f11 - f10 - f01 + f00], 1)


FUNCTIONS = _functions()


def _cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """`[nets, n, classes]` to `[nets, n]`."""
    return -F.log_softmax(outputs, -1).gather(-1, labels.expand(outputs.shape[:-1]).unsqueeze(-1)).squeeze(-1)


def _accuracy(outputs: Tensor, labels: Tensor) -> Readings:
    return {"accuracy": (outputs.argmax(-1) == labels).float().mean(1)}
