"""The part on labels: a classifier that memorised wrong labels, its edits, and the curvature of single examples."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.core.data import Data
from expunge.core.generators import generator_of
from expunge.core.problem import Problem
from expunge.core.seeding import forked
from expunge.data.fashion_mnist import FashionMNIST
from expunge.diagnostics.recommendation import curvature_of_logits
from expunge.models.mlp import MLP
from expunge.models.vit import ViT
from expunge.numerics.gram import gram
from expunge.numerics.kronecker import KroneckerFactors
from expunge.numerics.linops import differentiable
from expunge.studies.curvature.edits import Editor
from expunge.train.curvature import kronecker_factors
from expunge.train.evaluation import known
from expunge.train.matrices import matrices

WRONG = 0.1
"""Share of the labels that are wrong."""
BATCH = 100
SHARP = 40
"""Memorised images, and as many controls, whose curvature is taken one by one."""


@dataclass(frozen=True)
class NoisyRecipe:
    """An architecture with its training and the matrices that are edited."""

    model: MLP | ViT
    layers: tuple[str, ...]
    rate: float
    decay: float


PERCEPTRON = NoisyRecipe(MLP(widths=[256, 256, 256]), ("1",), 1e-3, 0.5)
TRANSFORMER = NoisyRecipe(ViT(patch=14, width=96, depth=2), ("patches", "blocks.*.up", "blocks.*.down"), 1.2e-3, 0.7)


@dataclass(frozen=True)
class Labels:
    """A trained classifier with its problem; wrong labels are the forget set."""

    problem: Problem
    """Retain: images with right labels. Holdout: unseen images, for factors and for the choice of rho."""
    model: nn.Module
    early: nn.Module
    """The model at the epoch of the best validation accuracy."""
    recipe: NoisyRecipe
    seed: int
    gradients: int
    """Per-example gradients of the training."""
    seconds: float
    """Of the training."""

    @cached_property
    def layers(self) -> dict[str, nn.Module]:
        """The matrices that are edited."""
        return matrices(self.model, self.recipe.layers)

    @property
    def for_factors(self) -> Tensor:
        """Unseen images, whose labels are not used."""
        return self.problem.holdout[len(self.problem.holdout) * 2 // 5 :]

    @property
    def validation(self) -> Tensor:
        """Unseen images with right labels."""
        return self.problem.holdout[: len(self.problem.holdout) * 2 // 5]

    def factors(self) -> KroneckerFactors:
        """Factors over unseen images, with sampled labels and with EK-FAC's eigenvalues."""
        return kronecker_factors(
            self.model, self.problem, self.for_factors, self.layers, eigenvalues="positions", seed=self.seed
        )

    def accuracy(self, model: nn.Module, ids: Tensor) -> float:
        """Share of these images that get the label of the data."""
        return float(known(model, self.problem, ids).double().mean())

    def halves(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Wrongly labelled images and test images, each in two halves."""
        sets = {"wrong": self.problem.forget, "test": self.problem.test}
        return {name: (ids[::2], ids[1::2]) for name, ids in sets.items()}

    def halved(self) -> Problem:
        """The problem of forgetting the first half of the wrong labels only; the others are in no set."""
        return replace(self.problem, forget=self.halves()["wrong"][0], corrupted=self.halves()["wrong"][0])

    def recovered(self, model: nn.Module) -> float:
        """Share of the wrongly labelled images that get their true label."""
        assert self.problem.true_targets is not None
        truth = self.problem.true_targets[self.problem.forget]
        return float((_answers(model, self.problem, self.problem.forget) == truth).double().mean())

    def wrong_by_chance(self, model: nn.Module) -> float:
        """Share of test images that get a wrong label that is drawn for them, and that no model saw."""
        ids = self.problem.test
        drawn = _wrong(self.problem.data.targets[ids], generator_of(self.seed, "unseen labels"))
        return float((_answers(model, self.problem, ids) == drawn).double().mean())

    def accurate(self, editor: Editor, loss: float, rhos: Sequence[float]) -> float:
        """The smallest of some rhos that costs at most this much accuracy on validation images; 1 if none does."""
        least = self.accuracy(self.model, self.validation) - loss - 1e-12
        # Accuracy moves by single images, so a search by halving could stop at a chance dip.
        return next((rho for rho in sorted(rhos) if self.accuracy(editor.at(rho), self.validation) >= least), 1.0)

    def tuned_again(self, model: nn.Module, epochs: int) -> nn.Module:
        """A copy after fine-tuning on images with right labels."""
        again = copy.deepcopy(model)
        optimizer = torch.optim.AdamW(again.parameters(), lr=self.recipe.rate / 5, weight_decay=self.recipe.decay)
        for _ in range(epochs):
            _epoch(again, self.problem, self.problem.retain, optimizer, generator_of(self.seed, "again"))
        return again.eval()


def trained(recipe: NoisyRecipe, seed: int, sizes: tuple[int, int, int], epochs: int) -> Labels:
    """Train on the first images, a tenth of which have a wrong label; the seed changes labels, weights and order.

    Args:
        recipe: Architecture and training.
        seed: Of all draws.
        sizes: Images for training, held out, and for tests.
        epochs: Passes over the training images.
    """
    start = time.perf_counter()
    problem = noisy(seed, *sizes)
    with forked(seed):
        model = recipe.model(problem.data)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    draws, best, early = generator_of(seed, "order"), -1.0, model
    validation = problem.holdout[: len(problem.holdout) * 2 // 5]
    for _ in range(epochs):
        _epoch(model.train(), problem, problem.train, optimizer, draws)
        schedule.step()
        accuracy = float(known(model, problem, validation).double().mean())
        if accuracy > best:
            best, early = accuracy, copy.deepcopy(model)
    seconds = time.perf_counter() - start
    return Labels(problem, model.eval(), early.eval(), recipe, seed, epochs * sizes[0], seconds)


def noisy(seed: int, train: int, holdout: int, tests: int) -> Problem:
    """Clothing with wrong labels on a tenth of the first images; the next ones are held out."""
    data = FashionMNIST(train=train + holdout, test=tests)()
    draws = generator_of(seed, "wrong labels")
    forget = torch.randperm(train, generator=draws)[: round(WRONG * train)].sort().values
    targets = data.targets.clone()
    targets[forget] = _wrong(targets[forget], draws)
    ids = torch.arange(train)
    changed = Data(data.inputs, targets, ids, data.test, data.labels)
    retain = ids[~torch.isin(ids, forget)]
    held = torch.arange(train, train + holdout)
    return Problem(
        changed, forget, retain, data.test, holdout=held, corrupted=forget, true_targets=data.targets.clone()
    )


def curvatures(labels: Labels, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The Gauss-Newton matrix of each image's loss: trace `[n]`, top eigenvalue `[n]`, and |cosines| of top directions.

    Returns:
        The cosines as a matrix `[n, n]`.
    """
    model, batch = labels.model, labels.problem.data.batch(ids)
    with torch.no_grad():
        logits = model(batch.inputs)
    count, classes = logits.shape
    aims = torch.eye(classes).repeat(count, 1)

    def aimed(model: nn.Module, rows: tuple[Tensor, Tensor]) -> Tensor:
        outputs: Tensor = (model(rows[0]) * rows[1]).sum(1)
        return outputs

    rows = (batch.inputs.repeat_interleave(classes, 0), aims)
    matrix = gram(aimed, model, differentiable(model), rows).matrix.double()
    products = curvature_of_logits(matrix, logits).view(count, classes - 1, count, classes - 1)
    own = torch.stack([products[i, :, i] for i in range(count)])
    values, vectors = torch.linalg.eigh(own)
    top, directions = values[:, -1].clamp(min=1e-30), vectors[:, :, -1]
    inner = torch.einsum("ir,irjs,js->ij", directions, products, directions)
    return own.diagonal(dim1=1, dim2=2).sum(1), top, (inner / (top[:, None] * top).sqrt()).abs()


def most_accurate(labels: Labels, models: Iterable[nn.Module], cap: float) -> float:
    """Accuracy on test images of the most accurate of some models that give at most a share `cap` of the wrong labels.

    Chosen on one half of the wrongly labelled and of the test images, judged on the other half of the test images.
    Without a model under the cap, it is the accuracy of a constant answer.
    """
    wrong, test = labels.halves()["wrong"], labels.halves()["test"]
    best, judged = -1.0, 0.1
    for model in models:
        accuracy = labels.accuracy(model, test[0])
        if accuracy > best and labels.accuracy(model, wrong[0]) <= cap:
            best, judged = accuracy, labels.accuracy(model, test[1])
    return judged


def _epoch(
    model: nn.Module, problem: Problem, ids: Tensor, optimizer: torch.optim.Optimizer, draws: torch.Generator
) -> None:
    for part in ids[torch.randperm(len(ids), generator=draws)].split(BATCH):
        batch = problem.data.batch(part)
        optimizer.zero_grad()
        F.cross_entropy(model(batch.inputs), batch.targets).backward()
        optimizer.step()


def _wrong(targets: Tensor, draws: torch.Generator) -> Tensor:
    return (targets + torch.randint(1, 10, targets.shape, generator=draws)) % 10


def _answers(model: nn.Module, problem: Problem, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(problem.data.batch(part).inputs).argmax(1) for part in ids.split(500)])
