"""Models whose answers are chosen, and the verdict about them: every step from a forward pass to a verdict is the real one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.audits.performance import Performance
from expunge.core.case import Case
from expunge.core.data import Data
from expunge.core.problem import Problem
from expunge.evidence.table import Measured, Table
from expunge.evidence.verdict import Verdict

Answers = Tensor
"""One answer per example `[n]`, or per token `[n, t]`."""
Draw = Callable[[np.random.Generator], Answers]
"""The answers of one training, from its own generator."""
FORGET, RETAIN, TEST, LABELS = 200, 400, 1000, 10


class Lookup(nn.Module):
    """A model that gives chosen answers: the first input of each example is its id, or the first two are its digits."""

    def __init__(self, answers: Answers, labels: int, base: int | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.answers, self.labels, self.base = answers, labels, base

    def forward(self, inputs: Tensor) -> Tensor:
        ids = inputs[:, 0].long() if self.base is None else inputs[:, 0] * self.base + inputs[:, 1]
        return self.scale * F.one_hot(self.answers[ids], self.labels).float()


@dataclass(frozen=True)
class World:
    """A problem, with models by name: their answers before any attack, and after each attack."""

    data: Data
    models: Mapping[str, Mapping[str | None, Draw]]
    seeds: int = 6
    training: Sequence[str] | None = None
    base: int | None = None

    def verdicts(self) -> dict[str, Verdict]:
        """The verdict about each model that is neither original nor reference."""
        return {verdict.model: verdict for verdict in self.table().verdicts()}

    def table(self) -> Table:
        """The scores of all models."""
        n = len(self.data.targets)
        ids = torch.arange(n)
        forget, retain, test = ids[:FORGET], ids[FORGET : FORGET + RETAIN], ids[FORGET + RETAIN :]
        problem = Problem(self.data, forget, retain, test)
        measured = []
        for name, states in self.models.items():
            for seed in range(self.seeds):
                for index, (attack, draw) in enumerate(states.items()):
                    generator = np.random.default_rng([seed, index, *map(ord, name)])
                    model = Lookup(draw(generator), len(self.data.labels), self.base)
                    scores = Performance()(model, Case(seed, problem, model), seed)
                    measured += [Measured(name, seed, attack, entry) for entry in scores]
        attacks = list(dict.fromkeys(a for states in self.models.values() for a in states if a is not None))
        extra: dict[str, Any] = {} if self.training is None else {"training": self.training}
        return Table(measured, list(self.models), list(range(self.seeds)), attacks, **extra)


def images(labels: Tensor) -> Data:
    """Examples `[n, 1]` that hold their id, with these labels."""
    n = len(labels)
    ids = torch.arange(n)
    names = tuple(map(str, range(LABELS)))
    return Data(ids.float()[:, None], labels, ids[: FORGET + RETAIN], ids[FORGET + RETAIN :], names)


def mixed_labels(forget: int | None = None) -> Tensor:
    """Labels of all examples; with `forget`, the forget set has this label alone."""
    generator = np.random.default_rng(7)
    labels = torch.from_numpy(generator.integers(0, LABELS, FORGET + RETAIN + TEST))
    if forget is not None:
        labels[:FORGET] = forget
    return labels


def right(labels: Tensor, forget: float, test: float = 0.97, by_label: Mapping[int, float] | None = None) -> Draw:
    """Right answers at these rates on the forget set and on all other examples, or on those of a label."""

    def draw(generator: np.random.Generator) -> Answers:
        rates = np.full(len(labels), test)
        for label, rate in (by_label or {}).items():
            rates[labels.numpy() == label] = rate
        rates[:FORGET] = forget
        wrong = (labels.numpy() + generator.integers(1, LABELS, len(labels))) % LABELS
        return torch.from_numpy(np.where(generator.random(len(labels)) < rates, labels.numpy(), wrong))

    return draw


def constant(label: int, share: float = 1.0, n: int = FORGET + RETAIN + TEST) -> Draw:
    """One answer for this share of all inputs, whatever they are, and any answer for the others."""

    def draw(generator: np.random.Generator) -> Answers:
        other = generator.integers(0, LABELS, n)
        return torch.from_numpy(np.where(generator.random(n) < share, label, other))

    return draw
