"""How much of the right answer a model writes: ROUGE-L recall of its greedy answer to the prompt (Lin 2004).

The model reads the prompt, the tokens before the first decided one, and writes until its EOS or until it has as many
tokens as the right answer. The value of an example is the length of the longest common subsequence of both texts,
divided by the length of the right one: 1 if the model recites, and still high if one word is wrong. Other metrics of
this library feed the right tokens and ask for the next one. Here the model goes on from its own words, as in use.

With a tokenizer, units are words: lower-case runs of letters a to z and digits, as in the scorer of TOFU (2401.06121)
without its stemmer. An example whose answer has no such word, as in most other scripts, is compared token by token, and
so are texts without a tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor, nn

from expunge.base.part import Count
from expunge.core.case import Case
from expunge.core.contracts import Audit
from expunge.core.data import Data
from expunge.core.generation import generated, prompts_and_answers
from expunge.core.problem import Problem
from expunge.evidence.estimate import Better
from expunge.evidence.scores import Role, Scores
from expunge.train.evaluation import sample
from expunge.train.loop import in_order

WORD = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True)
class Generated(Audit):
    """ROUGE-L recall of generated answers: knowledge on the forget set and on questions about it."""

    needs: ClassVar[frozenset[str]] = frozenset({"tokens"})
    cite: ClassVar[str] = "lin2004rouge"

    retain: Count = 200
    """Retain examples to score, a fixed random part."""
    test: Count = 200
    """Unseen examples to score, a fixed random part."""

    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        """The recall of each example of the forget, retain and test set."""
        problem = case.problem
        splits: list[tuple[str, Tensor, Role, Better]] = [
            ("forget", problem.unexposed, "knowledge", "reference"),
            ("question", problem.questions, "knowledge", "reference"),
            ("retain", sample(problem.retain, self.retain, "retain"), "description", "higher"),
            ("test", sample(problem.test, self.test, "test"), "description", "higher"),
        ]
        groups = None if problem.data.groups is None else problem.data.groups.numpy()
        return [
            Scores(
                "rouge_l",
                split,
                recalls(model, problem, ids),
                ids.numpy(),
                role,
                "share",
                better,
                group=None if groups is None else groups[ids.numpy()],
            )
            for split, ids, role, better in splits
            if len(ids)
        ]


def recalls(model: nn.Module, problem: Problem, ids: Tensor) -> np.ndarray:
    """ROUGE-L recall of the model's answer to each example, `[n]`; 0 for one without a decided token."""
    data, values = problem.data, list[float]()
    stop = () if data.tokenizer is None else (data.tokenizer.eos,)
    for batch in in_order(data, ids):
        prompts, answers = prompts_and_answers(batch)
        limits = [len(answer) for answer in answers]
        written = generated(model, prompts, limits, stop=stop, output=problem.objective.output)
        values += [recall(*units(data, right, own)) for right, own in zip(answers, written, strict=True)]
    return np.array(values)


def units(data: Data, right: Tensor, own: Tensor) -> tuple[Sequence[Hashable], Sequence[Hashable]]:
    """What two token sequences are compared by: words, or tokens if there is no tokenizer or no word."""
    if data.tokenizer is None:
        return right.tolist(), own.tolist()
    size = data.tokenizer.size
    texts = [data.tokenizer.decode([t for t in tokens.tolist() if 0 <= t < size]) for tokens in (right, own)]
    words = [WORD.findall(text.lower()) for text in texts]
    if words[0]:
        return words[0], words[1]
    plain = [[token for token in tokens.tolist() if token != data.tokenizer.eos] for tokens in (right, own)]
    return plain[0], plain[1]


def recall(right: Sequence[Hashable], own: Sequence[Hashable]) -> float:
    """Length of the longest common subsequence, divided by the length of the right sequence; 0 if that is empty."""
    row = [0] * (len(own) + 1)
    for unit in right:
        before = row
        row = [0]
        for at, other in enumerate(own):
            row.append(before[at] + 1 if unit == other else max(before[at + 1], row[at]))
    return row[-1] / len(right) if len(right) else 0.0
