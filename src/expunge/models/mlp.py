"""A multilayer perceptron with ReLU, for vectors and small images."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import nn

from expunge.base.errors import SpecError
from expunge.base.part import Count, Share
from expunge.core.contracts import Architecture
from expunge.core.data import Data


@dataclass(frozen=True)
class MLP(Architecture):
    """Flatten, then linear layers with ReLU between them."""

    widths: list[Count] = field(default_factory=lambda: [256, 128])
    """Units of each hidden layer."""
    dropout: Share = 0.0
    """Probability with which a hidden unit is dropped in training."""

    def __call__(self, data: Data) -> nn.Sequential:
        """The module for inputs of any shape `[b, ...]`, returning `[b, outputs]`.

        Raises:
            SpecError: The data are tokens.
        """
        if data.has_tokens:
            raise SpecError("the data are tokens", where="model (mlp)", allowed="vectors or images")
        layers: list[nn.Module] = [nn.Flatten()]
        width = math.prod(data.shape)
        for units in self.widths:
            layers += [nn.Linear(width, units), nn.ReLU()]
            layers += [nn.Dropout(self.dropout)] if self.dropout else []
            width = units
        return nn.Sequential(*layers, nn.Linear(width, data.objective.outputs))
