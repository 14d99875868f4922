"""Multiple choice about what must be forgotten: which of several answers a model finds most likely.

The score of an answer is the mean log-probability of its tokens after the question, without EOS. A letter behind listed
answers has one token. Answers written out may have several, and the mean does not prefer short ones. Letters test
the format as well: a model may know the answer and no longer obey "Answer:".
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from expunge.core.choices import chosen_among, option_texts
from expunge.core.decisions import Decisions, decision_losses, per_example
from expunge.core.problem import Problem
from expunge.evidence.scores import Scores
from expunge.train.evaluation import DataWithObjective, evaluate


def choices(model: nn.Module, problem: Problem) -> Iterator[Scores]:
    """`choice`, 1 if the right answer has the highest score, and `choice_probability`, its share among the answers.

    Chance, 1 divided by the number of answers, is the baseline. Nothing comes of data without such questions.
    """
    data = problem.data
    ids = problem.questions if data.choices is not None else problem.questions[:0]
    ids = ids[[data.choices is not None and data.choices[row] is not None for row in ids.tolist()]]
    if not len(ids):
        return
    asked = chosen_among(data, ids)
    texts, many = option_texts(data, asked), len(asked[0].options)
    scores = torch.from_numpy(evaluate(model, DataWithObjective(texts, problem.objective), texts.train, _log_p))
    scores, right = scores.view(-1, many), torch.tensor([question.right for question in asked])[:, None]
    # Answers that tie share it, so that a model that answers nothing is at chance.
    best = (scores == scores.amax(1, keepdim=True)).double()
    measured = {"choice": best / best.sum(1, keepdim=True), "choice_probability": scores.softmax(1)}
    groups = None if data.groups is None else data.group_of(ids).numpy()
    for name, values in measured.items():
        own = values.gather(1, right)[:, 0].numpy()
        chance = torch.full((len(ids),), 1 / many, dtype=torch.float64).numpy()
        yield Scores(
            name, "question", own, ids.numpy(), "knowledge", "share", "reference", group=groups, baseline=chance
        )


def _log_p(decisions: Decisions, size: int) -> Tensor:
    """Mean log-probability of each text's decided tokens but the last, which is EOS, `[size]`."""
    counts = torch.bincount(decisions.example, minlength=size)
    inside = torch.ones_like(decisions.example, dtype=torch.bool)
    inside[counts.cumsum(0) - 1] = False
    losses = torch.where(inside, decision_losses(decisions).double(), 0.0)
    return -per_example(losses, decisions.example, size) / (counts - 1).clamp(min=1)
