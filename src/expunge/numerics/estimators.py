"""Gradients through discrete choices: nine estimators with one interface.

Logits l `[..., C]` choose one of C categories; z is the choice, one-hot. Every forward pass has the law

    z ~ softmax(l / forward)

because logits are scaled before noise is added. The common softmax((l + g) / tau) is another thing: its hard choice is
the same at every tau. With G = dL/dz, J(p) = diag(p) - p p^T, l' = l / forward and p = softmax(l'), dL/dl is

    identity           G                                                        (Bengio et al., 2013)
    softmax            J(p) G / forward
    st_gs              J(softmax(l' + g)) G / forward, with the noise g that chose z        (Jang et al., 2017)
    decoupled_st_gs    J(softmax(l / backward + g)) G / backward, with the same g           (2410.13331v1)
    decoupled_st       J(softmax(l / backward)) G / backward                                (2410.13331v2)
    gumbel_rao         mean over g given z of J(softmax((l' + g) / temperature)) G / (temperature forward)
    reinmax            (2 J(d) G - J(p) G / 2) / forward, with d = (softmax(l' / temperature) + z) / 2
    reinforce_loo      mean over draws of (L - mean of the others' L) d log p(z) / dl: no bias
    exact              the sum over all choices: neither bias nor variance

A Bernoulli variable with logit l is a category with logits (l, 0): `bernoulli(logits)` draws it by the same formulas.
`estimator_diagnosis` measures bias and variance on your own model.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from expunge.base.errors import unknown
from expunge.numerics._draws import categorical, conditional_gumbel, gumbel, one_hot
from expunge.numerics._estimator import Estimator, Pathwise, Temperature, two_categories
from expunge.numerics._unbiased import Exact, ReinforceLOO, all_choices

__all__ = [
    "STGS",
    "DecoupledST",
    "DecoupledSTGS",
    "Estimator",
    "Exact",
    "GumbelRao",
    "IdentityST",
    "Pathwise",
    "ReinMax",
    "ReinforceLOO",
    "SoftmaxST",
    "all_choices",
    "estimator",
    "two_categories",
]


@dataclass(frozen=True)
class IdentityST(Pathwise):
    """The gradient by the choice is taken for that by the logits (Bengio et al., 2013)."""

    name: ClassVar[str] = "identity"
    relaxes: ClassVar[bool] = False

    def sample(self, logits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The choice and the logits."""
        return categorical(logits / self.forward, generator), logits


@dataclass(frozen=True)
class DecoupledST(Pathwise):
    """Two temperatures, and no noise in the backward pass (2410.13331, version 2)."""

    name: ClassVar[str] = "decoupled_st"

    backward: Temperature = 1.0
    """The temperature of the backward pass."""

    def sample(self, logits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The choice and softmax(l / backward)."""
        return categorical(logits / self.forward, generator), F.softmax(logits / self.backward, -1)


@dataclass(frozen=True)
class SoftmaxST(Pathwise):
    """The derivative of the softmax that the choice was drawn from."""

    name: ClassVar[str] = "softmax"

    def sample(self, logits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The choice and softmax(l / forward)."""
        scaled = logits / self.forward
        return categorical(scaled, generator), F.softmax(scaled, -1)


@dataclass(frozen=True)
class DecoupledSTGS(Pathwise):
    """Two temperatures, and the noise of the forward pass in the backward pass too (2410.13331, version 1)."""

    name: ClassVar[str] = "decoupled_st_gs"

    backward: Temperature = 1.0
    """The temperature of the backward pass."""

    def sample(self, logits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The choice and softmax(l / backward + g)."""
        noise = gumbel(logits, generator)
        return one_hot(logits.detach() / self.forward + noise), F.softmax(logits / self.backward + noise, -1)


@dataclass(frozen=True)
class STGS(Pathwise):
    """Straight-through Gumbel-softmax (Jang et al., 2017), with logits scaled before noise as 2410.13331 does it."""

    name: ClassVar[str] = "st_gs"

    def sample(self, logits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The choice and softmax(l / forward + g)."""
        noisy = logits / self.forward + gumbel(logits, generator)
        return one_hot(noisy.detach()), F.softmax(noisy, -1)


@dataclass(frozen=True)
class GumbelRao(Pathwise):
    """The mean of several relaxed gradients, with noise drawn given the choice (Paulus et al., 2021).

    With one draw it is the common `torch.nn.functional.gumbel_softmax(hard=True)`.
    """

    name: ClassVar[str] = "gumbel_rao"

    temperature: Temperature = 0.5
    """Of the relaxed choices, after the noise."""
    draws: int = 16
    """Relaxed choices for each hard one."""

    def sample(self, logits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The choice and the mean relaxed choice; noise is held fixed in the derivative."""
        scaled = logits / self.forward
        hard = categorical(scaled, generator)
        noise = conditional_gumbel(scaled, hard, self.draws, generator) - scaled.detach()
        return hard, F.softmax((scaled + noise) / self.temperature, -1).mean(0)


@dataclass(frozen=True)
class ReinMax(Pathwise):
    """Second-order accurate straight-through (Liu et al., 2023).

    Raises:
        SpecError: The temperature is below 1.
    """

    name: ClassVar[str] = "reinmax"
    relaxes: ClassVar[bool] = False
    smallest: ClassVar[float] = 1.0

    temperature: Temperature = 1.0
    """Of the softmax that is averaged with the choice; at least 1."""

    def sample(self, logits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The choice, and a tensor whose derivative is 2 J(d) - J(p) / 2."""
        scaled = logits / self.forward
        hard = categorical(scaled, generator)
        flat = scaled.detach()
        p = F.softmax(flat, -1)
        same = not isinstance(self.temperature, Tensor) and self.temperature == 1
        twice = hard + (p if same else F.softmax(flat / self.temperature, -1))
        connected: Tensor = _SecondOrder.apply(scaled, p, twice)
        return hard, connected


class _SecondOrder(torch.autograd.Function):
    """Logits with the derivative 2 J(d) - J(p) / 2, given p and 2 d; autograd would need twice as many tensors."""

    generate_vmap_rule = True

    @staticmethod
    def forward(scaled: Tensor, p: Tensor, twice: Tensor) -> Tensor:
        return scaled.view_as(scaled)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        p, twice = ctx.saved_tensors
        # J(q) G is q * G - q (q . G).
        first, second = (q * gradients[0] for q in (twice, p))
        first = torch.addcmul(first, twice, first.sum(-1, keepdim=True), value=-0.5)
        second = torch.addcmul(second, p, second.sum(-1, keepdim=True), value=-1)
        return torch.sub(first, second, alpha=0.5), None, None


ESTIMATORS: dict[str, type[Estimator]] = {
    "identity": IdentityST,
    "softmax": SoftmaxST,
    "st_gs": STGS,
    "decoupled_st_gs": DecoupledSTGS,
    "decoupled_st": DecoupledST,
    "gumbel_rao": GumbelRao,
    "reinmax": ReinMax,
    "reinforce_loo": ReinforceLOO,
    "exact": Exact,
}
"""By name, as settings of methods and blocks spell it."""


def estimator(name: str, **settings: float) -> Estimator:
    """An estimator by its name.

    Args:
        name: One of `ESTIMATORS`.
        settings: Temperatures and numbers of draws, by field.

    Raises:
        SpecError: The name or a setting is unknown, or a setting is out of range.
    """
    if name not in ESTIMATORS:
        raise unknown("estimator", name, ESTIMATORS, where="estimator")
    allowed = [field.name for field in fields(ESTIMATORS[name])]
    for setting in settings:
        if setting not in allowed:
            raise unknown("setting", setting, allowed, where=f"estimator {name}")
    return ESTIMATORS[name](**settings)
