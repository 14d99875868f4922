"""A network with complex weights, and the same network with a real and an imaginary part in the place of each."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.core.case import Case, Meter, Shadows
from expunge.core.data import Data
from expunge.core.problem import Problem
from expunge.train.training import Training

INPUTS, CLASSES = 5, 3


class Lift(nn.Module):
    """Real inputs as complex numbers."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.to(torch.promote_types(inputs.dtype, torch.complex64))


class Squash(nn.Module):
    """z / (1 + |z|), which is smooth in both parts, and not holomorphic."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden / (1 + hidden.abs())


class Modulus(nn.Module):
    """|z|."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.abs()


class Pairs(nn.Module):
    """`nn.Linear` with complex weights, each held as two real ones: weight `[o, i, 2]`, bias `[2 o]`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.weight = nn.Parameter(torch.empty(outputs, inputs, 2, dtype=torch.float64))
        self.bias = nn.Parameter(torch.empty(2 * outputs, dtype=torch.float64))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        drawn = nn.Linear(self.inputs, self.outputs, dtype=torch.complex128)
        with torch.no_grad():
            self.weight.copy_(torch.view_as_real(drawn.weight))
            self.bias.copy_(torch.view_as_real(drawn.bias).flatten())

    def forward(self, hidden: Tensor) -> Tensor:
        # Not `view_as_complex`, whose derivative needs an even place in memory.
        weight, bias = (torch.complex(*pairs.unbind(-1)) for pairs in (self.weight, self.bias.view(-1, 2)))
        return F.linear(hidden, weight, bias)


def _net(first: nn.Module, second: nn.Module, head: nn.Module) -> nn.Sequential:
    parts = {"lift": Lift(), "first": first, "squash": Squash(), "second": second, "size": Modulus(), "head": head}
    return nn.Sequential(OrderedDict(parts))


def complex_net(dtype: torch.dtype = torch.complex128) -> nn.Sequential:
    """Two complex layers, and a real one on the moduli."""
    first, second = nn.Linear(INPUTS, 6, dtype=dtype), nn.Linear(6, 4, dtype=dtype)
    return _net(first, second, nn.Linear(4, CLASSES, dtype=dtype.to_real()))


def real_net() -> nn.Sequential:
    """The same function of real weights, in double precision; it draws the same initial weights."""
    return _net(Pairs(INPUTS, 6), Pairs(6, 4), nn.Linear(4, CLASSES, dtype=torch.float64))


def parts_of(model: nn.Module) -> Tensor:
    """All parameters as one real vector; of a complex one the real and the imaginary part of each entry."""
    values = [p.detach() for p in model.parameters()]
    return torch.cat([(torch.view_as_real(v) if v.is_complex() else v).flatten() for v in values])


def as_pairs(model: nn.Module) -> nn.Module:
    """A copy of a complex network as a real one."""
    twin = real_net()
    nn.utils.vector_to_parameters(parts_of(model), twin.parameters())
    return twin.eval()


def problem_of(*, cscores: bool = True) -> Problem:
    """60 points of three classes in double precision: 8 to forget, 32 to retain, 14 for test, 6 held out."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(60, INPUTS, generator=generator).double(), torch.arange(60) % CLASSES
    inputs[torch.arange(60), targets] += 1
    scores = torch.rand(60, generator=generator).double() if cscores else None
    data = Data(inputs, targets, torch.arange(40), torch.arange(40, 54), ("a", "b", "c"), cscore=scores)
    return Problem(data, torch.arange(8), torch.arange(8, 40), data.test, holdout=torch.arange(54, 60))


@dataclass(frozen=True)
class NetRecipe:
    """Trains either network by SGD."""

    pairs: bool

    def build(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return real_net() if self.pairs else complex_net()

    def fit(self, module: nn.Module, data: Data, ids: Tensor, seed: int, meter: Meter | None = None) -> nn.Module:
        training = Training(epochs=20, batch_size=10, learning_rate=0.1, optimizer="sgd", weight_decay=1e-3)
        return training.fit(module, data, ids, seed, meter)


def cases(*, cscores: bool = True) -> tuple[Case, Case]:
    """The case of a trained complex network, and that of the same network as a real one, with their shadows."""
    problem, recipe = problem_of(cscores=cscores), NetRecipe(pairs=False)

    def trained(seed: int, ids: Tensor) -> nn.Module:
        return recipe.fit(recipe.build(seed), problem.data, ids, seed).eval()

    with torch.random.fork_rng(devices=[]):
        original = trained(0, problem.train)
        knew = [trained(seed, problem.train) for seed in (1, 2)]
        never = [trained(seed, problem.retain) for seed in (1, 2)]
        pairs = Shadows([as_pairs(m) for m in knew], [as_pairs(m) for m in never])
        twin = as_pairs(original)
    return (
        Case(0, problem, original, recipe, Shadows(knew, never)),
        Case(0, problem, twin, NetRecipe(pairs=True), pairs),
    )
