"""Does the knowledge that a GPT's embeddings hold rank its accuracy over checkpoints? Multiple choice about people."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from expunge.base.seeds import derive
from expunge.core.choices import chosen_among
from expunge.core.features import last_hidden
from expunge.core.problem import Problem
from expunge.core.seeding import forked
from expunge.numerics.concept_regression import Normalisation, fit_concept, knowledge_share
from expunge.studies.cb_icl.forgetting import Forgetting
from expunge.train.evaluation import sample
from expunge.train.loop import batch_count
from expunge.train.option_embeddings import embed_options, option_scores
from expunge.train.training import TrainedRecipe, Training

QUESTIONS, SHOWN = 160, 8
"""Retained questions that are read, and demonstrations."""
POINTS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
"""Shares of the training's steps after which the model is read."""


class KnowledgePoint(NamedTuple):
    """One point of the training."""

    knowledge: float
    """1 minus the share of residual energy."""
    accuracy: float
    """Of concept regression from a few demonstrations."""
    own: float
    """Of the model's own answers: its most likely option."""


def trained(of: Forgetting, seed: int) -> tuple[nn.Module, list[KnowledgePoint]]:
    """Train the original, and read it before the training, and after each of `POINTS`."""
    recipe, problem = of.recipe, of.problem
    assert isinstance(recipe, TrainedRecipe) and isinstance(recipe.training, Training)
    training, checkpoints = recipe.training, list[KnowledgePoint]()
    steps = training.epochs * batch_count(len(problem.train), training.batch_size)
    points = [round(share * steps) for share in POINTS]

    def watched(module: nn.Module, *_: object) -> Callable[[int, float], None]:
        def on_step(step: int, loss: float) -> None:
            if step in points:
                checkpoints.append(read(module, problem, seed))

        return on_step

    with forked(derive(seed, "original")):
        model = recipe.build(derive(seed, "original"))
        checkpoints.append(read(model, problem, seed))
        training.fit(model, problem.data, problem.train, derive(seed, "original"), watched=watched)
    return model, checkpoints


def read(model: nn.Module, problem: Problem, seed: int) -> KnowledgePoint:
    """What the model knows of retained people."""
    ids = sample(problem.retain, QUESTIONS, "recall")
    questions = chosen_among(problem.data, ids)
    right = torch.tensor([question.right for question in questions])
    raw = embed_options(model, problem, questions, last_hidden(model, problem, "layer"))
    rows = Normalisation.fit(raw, 8)(raw)
    own = option_scores(model, problem, questions).argmax(1)
    return KnowledgePoint(knowledge_share(rows, right, ridge=1.0), _accuracy(rows, right, seed), _share(own, right))


def _accuracy(rows: Tensor, right: Tensor, seed: int) -> float:
    generator = torch.Generator().manual_seed(derive(seed, "recall"))
    shares = []
    for _ in range(8):
        order = torch.randperm(len(rows), generator=generator)
        shown, rest = order[:SHOWN], order[SHOWN:]
        predicted = fit_concept(rows[shown], right[shown], ridge=1.0).predict(rows[rest])
        shares.append(_share(predicted.argmax(1), right[rest]))
    return sum(shares) / len(shares)


def _share(answers: Tensor, right: Tensor) -> float:
    return float((answers == right).double().mean())
