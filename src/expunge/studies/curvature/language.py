"""The part on text: one GPT on the suite, its edits at the same rises of perplexity, and what they cost each task."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.core.data import IGNORE
from expunge.core.generators import generator_of
from expunge.core.seeding import forked
from expunge.models.gpt import GPT
from expunge.numerics.kronecker import KroneckerFactors
from expunge.studies.curvature.edits import Editor, strongest
from expunge.studies.curvature.suite import FAMILIES, Suite
from expunge.train.curvature import kronecker_factors
from expunge.train.evaluation import known_share, losses, sample
from expunge.train.matrices import matrices
from expunge.train.optim import cosine

ROWS = {
    "text": 5,
    "salad": 1,
    "quote": 1,
    "sum": 4,
    "copy": 2,
    "bracket": 1,
    "logic": 1,
    "fact": 1,
    "open": 2,
    "rule": 2,
}
"""Rows of each kind in a step, of those that the suite has."""
LAYERS = ("blocks.*.up", "blocks.*.down")
RATE, DECAY, AGAIN = 4e-3, 0.1, 5e-4
"""Largest step size and weight decay of training, and the step size of fine-tuning after an edit."""
RISES = (0.05, 0.1, 0.18, 0.2)
"""Allowed rises of the perplexity of validation text."""
MATCHED = (0.05, 0.1, 0.2)
"""Those over which recitation is averaged."""
SUBNETS = [
    {"share": share, "weight": weight, "learning_rate": rate, "epochs": 10, "batch_size": 12}
    for share, weight in ((0.01, 0.5), (0.03, 0.5), (0.1, 0.5), (0.03, 0.7))
    for rate in (0.1, 1.0)
]
"""Settings of BalancedSubnet to choose from."""


@dataclass(frozen=True)
class Language:
    """A trained GPT with its suite."""

    suite: Suite
    model: nn.Module
    seed: int
    gradients: int
    """Per-example gradients of the training."""
    seconds: float
    """Of the training."""

    @cached_property
    def layers(self) -> dict[str, nn.Module]:
        """The matrices that are edited."""
        return matrices(self.model, LAYERS)

    @property
    def corpus(self) -> tuple[str, ...]:
        """What factors are measured on: everything but planted sequences."""
        return ("text", *self.suite.tasks)

    @cached_property
    def perplexity(self) -> float:
        """Of validation text."""
        return self.perplexity_of(self.model, self.suite.validation)

    def perplexity_of(self, model: nn.Module, ids: Tensor) -> float:
        """The exponential of the mean loss."""
        return float(np.exp(np.mean(losses(model, self.suite.problem, ids))))

    def shares(self, model: nn.Module) -> dict[str, float]:
        """The share of each judged part that the model writes without a mistake."""
        return {name: known_share(model, self.suite.problem, ids) for name, ids in self.suite.judged.items()}

    def factors(self, kinds: Sequence[str], most: int, *, eigenvalues: bool = False) -> KroneckerFactors:
        """Factors over training rows of some kinds, in the proportions of the training."""
        return kronecker_factors(
            self.model,
            self.suite.problem,
            torch.cat(self.for_factors(kinds, most)),
            self.layers,
            eigenvalues="positions" if eigenvalues else None,
            seed=self.seed,
        )

    def for_factors(self, kinds: Sequence[str], most: int) -> list[Tensor]:
        """The training rows of each kind that factors are measured on."""
        total = sum(ROWS[kind] for kind in kinds)
        return [sample(self.suite.trained[k], most * ROWS[k] // total, "factors") for k in kinds]

    def matched(self, editor: Editor, rises: Sequence[float] = RISES) -> dict[float, float]:
        """For each rise, the smallest rho for which validation perplexity rises by at most that."""

        def allowed(rise: float) -> Callable[[float], bool]:
            most = (1 + rise) * self.perplexity
            return lambda rho: self.perplexity_of(editor.at(rho), self.suite.validation) <= most

        return {rise: strongest(allowed(rise)) for rise in rises}

    def report(self, model: nn.Module) -> dict[str, float]:
        """Shares, and the rise of the perplexity of test text."""
        test = self.suite.problem.test
        rise = self.perplexity_of(model, test) / self.perplexity_of(self.model, test) - 1
        return self.shares(model) | {"perplexity": rise}

    def tuned_again(self, model: nn.Module, steps: int) -> nn.Module:
        """A copy after fine-tuning on text and tasks, without planted sequences."""
        again = copy.deepcopy(model)
        rows = {kind: count for kind, count in _rows(self.suite).items() if kind not in FAMILIES}
        _train(again, self.suite, rows, steps, AGAIN, generator_of(self.seed, "again"), constant=True)
        return again


def trained(suite: Suite, seed: int, width: int, layers: int, steps: int) -> Language:
    """Train the GPT of a seed."""
    start = time.perf_counter()
    with forked(seed):
        model = GPT(width=width, layers=layers)(suite.problem.data)
    rows = _rows(suite)
    _train(model, suite, rows, steps, RATE, generator_of(seed, "rows"))
    return Language(suite, model, seed, steps * sum(rows.values()), time.perf_counter() - start)


def _rows(suite: Suite) -> dict[str, int]:
    return {kind: count for kind, count in ROWS.items() if kind in suite.trained}


def _train(
    model: nn.Module,
    suite: Suite,
    rows: Mapping[str, int],
    steps: int,
    rate: float,
    draws: torch.Generator,
    *,
    constant: bool = False,
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=DECAY)
    schedule, warm = cosine(steps, 0.0), max(steps // 10, 1)
    model.train()
    for step in range(steps):
        factor = 1.0 if constant else min((step + 1) / warm, 1.0) * schedule(step)
        optimizer.param_groups[0]["lr"] = rate * factor
        parts = [suite.trained[k][torch.randint(len(suite.trained[k]), (n,), generator=draws)] for k, n in rows.items()]
        batch = suite.problem.data.batch(torch.cat(parts))
        optimizer.zero_grad()
        logits = model(batch.inputs)
        F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
