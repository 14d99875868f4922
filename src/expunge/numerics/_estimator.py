"""What an estimator of gradients through discrete choices is: its settings, their checks, and how it is called."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from expunge.base.errors import SpecError
from expunge.numerics._draws import straight_through

Temperature = float | Tensor
"""Above 0; a tensor must broadcast to the logits, so that many nets with a temperature each can train side by side."""
Loss = Callable[[Tensor], Tensor]
"""Maps choices `[..., N, C]` to losses `[...]`. It is called with more leading dimensions than the logits have."""


@dataclass(frozen=True)
class Estimator(ABC):
    """How a loss of discrete choices gets a gradient by logits.

    Raises:
        SpecError: A temperature is not positive or not finite, or the number of draws is too small.
    """

    name: ClassVar[str]
    """The name in `ESTIMATORS`."""
    fewest_draws: ClassVar[int] = 1
    smallest: ClassVar[float] = 0.0
    """The lower bound of the field `temperature`, allowed itself if it is above 0."""

    forward: Temperature = 1.0
    """The temperature of the forward pass: choices have the law softmax(l / forward)."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, where = getattr(self, field.name), f"{self.name}, {field.name}"
            if field.name == "draws":
                _check_draws(value, self.fewest_draws, where)
            else:
                _check_temperature(value, self.smallest if field.name == "temperature" else 0.0, where)

    @abstractmethod
    def expected(self, logits: Tensor, loss: Loss, generator: torch.Generator) -> Tensor:
        """The mean loss over choices, estimated, with this estimator's gradient.

        Args:
            logits: `[..., N, C]`, for N choices that are made independently of each other.
            loss: Maps choices `[..., N, C]` to losses `[...]`; its own weights get their gradients too.
            generator: Decides the choices.

        Returns:
            `[...]`.

        Raises:
            SpecError: There is only one category, or the combinations of choices are too many to enumerate.
        """


class Pathwise(Estimator):
    """An estimator that gives a sample with a gradient, for use inside any model."""

    relaxes: ClassVar[bool] = True
    """Whether the second tensor of `sample` is a relaxed choice, with entries that sum to 1."""

    @abstractmethod
    def sample(self, logits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The hard choice, and the tensor whose derivative takes its place in the backward pass."""

    def __call__(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """One-hot choices `[..., C]` of logits `[..., C]`, with a gradient.

        Raises:
            SpecError: There is only one category.
        """
        return straight_through(*self.sample(checked(logits), generator))

    def bernoulli(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """Zeros and ones of any shape, 1 with probability sigmoid(logits / forward), with a gradient."""
        return self(two_categories(logits), generator)[..., 0]

    def expected(self, logits: Tensor, loss: Loss, generator: torch.Generator) -> Tensor:
        """The loss of one choice."""
        return loss(self(logits, generator))


def two_categories(logits: Tensor) -> Tensor:
    """Logits `[..., 2]` of a category that is the first one with probability sigmoid(logits)."""
    return torch.stack([logits, torch.zeros_like(logits)], -1)


def checked(logits: Tensor) -> Tensor:
    """The logits themselves.

    Raises:
        SpecError: There is only one category, or the logits are not floating point.
    """
    if logits.ndim < 1 or logits.shape[-1] < 2 or not logits.is_floating_point():
        finding = f"logits have shape {list(logits.shape)} and type {logits.dtype}"
        allowed = "floating point, with at least 2 categories in the last dimension"
        raise SpecError(finding, where="estimator", allowed=allowed, remedy="for one logit a choice take bernoulli")
    return logits


def _check_temperature(value: Temperature, least: float, where: str) -> None:
    allowed = f"a finite number of at least {least:g}" if least else "a finite number above 0"
    try:
        numbers = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise SpecError(f"found {value!r}", where=where, allowed=allowed) from None
    if not bool(((numbers >= least) & (numbers > 0) & numbers.isfinite()).all()):
        raise SpecError(f"found {value}", where=where, allowed=allowed)


def _check_draws(value: int, least: int, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SpecError(f"found {value!r}", where=where, allowed=f"a whole number of at least {least}")
