"""Sequences planted in a text for the model to recite: a prompt with a made-up name, then made-up words.

Each sequence is one training window and occurs `copies` times. Only the secret's tokens are decisions; the prompt is
given. Copies share a group, so no attack trains on a copy of an audited sequence. The hold-out has as many other
sequences, on which no model trains: they show how often a model recites by chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from expunge.base.errors import SpecError
from expunge.base.part import Count
from expunge.core.contracts import Task
from expunge.core.data import IGNORE, Data
from expunge.core.generators import generator_of
from expunge.core.problem import Problem

CONSONANTS, VOWELS = "bcdfghjklmnprstvwz", "aeiou"
PROMPT, NAME = "The secret of {name} is ", 6


@dataclass(frozen=True)
class PlantedText(Task):
    """Made-up secrets among the training windows of a text of bytes."""

    count: Count = 40
    """Number of different sequences."""
    copies: Count = 4
    """Copies of each sequence in the training set."""
    secret: Count = 20
    """Length of a secret in characters."""

    def __call__(self, data: Data, seed: int, measured: Mapping[str, Tensor]) -> Problem:
        """The problem, on the data with the planted windows added at its end.

        Raises:
            SpecError: The data are not a text of bytes, or a sequence does not fit into a window.
        """
        if not data.has_tokens or len(data.labels) != 256:
            raise SpecError("the data are not bytes", where="forget (planted_text)", allowed="a text data set of bytes")
        if not isinstance(data.inputs, Tensor):
            raise SpecError("the texts are read lazily", where="forget (planted_text)", allowed="texts in memory")
        generator = generator_of(seed, "planted_text")
        rows = [self._row(data, generator) for _ in range(2 * self.count)]
        planted, unseen = rows[: self.count], rows[self.count :]
        tokens = torch.stack([row for row in planted for _ in range(self.copies)] + unseen)
        first = len(data)
        taken = data.group_of(torch.arange(first))
        # Above every group of the data; groups need not be numbered like examples.
        groups = max(first, int(taken.max()) + 1) + torch.arange(2 * self.count)
        groups = torch.cat([groups[: self.count].repeat_interleave(self.copies), groups[self.count :]])
        forget = torch.arange(first, first + self.count * self.copies)
        extended = replace(
            data,
            inputs=torch.cat([data.inputs, tokens[:, :-1]]),
            targets=torch.cat([data.targets, self._targets(tokens)]),
            train=torch.cat([data.train, forget]),
            groups=torch.cat([taken, groups]),
            cscore=None,
        )
        holdout = torch.arange(first + len(forget), len(extended))
        return Problem(extended, forget, data.train, data.test, holdout=holdout)

    def _row(self, data: Data, generator: torch.Generator) -> Tensor:
        text = PROMPT.format(name=_word(NAME, generator)) + _word(self.secret, generator)
        span = data.shape[0] + 1
        if len(text) > span:
            raise SpecError(
                f"a sequence of {len(text)} characters does not fit into {span}",
                where="forget.secret",
                allowed=f"1 to {span - len(text) + self.secret}",
            )
        return torch.tensor(list(text.ljust(span).encode()))

    def _targets(self, tokens: Tensor) -> Tensor:
        targets = tokens[:, 1:].clone()
        start = len(PROMPT.format(name="x" * NAME)) - 1
        targets[:, :start] = IGNORE
        targets[:, start + self.secret :] = IGNORE
        return targets


def _word(length: int, generator: torch.Generator) -> str:
    draws = torch.randint(0, len(CONSONANTS) * len(VOWELS), (length,), generator=generator).tolist()
    sets = [VOWELS if i % 2 else CONSONANTS for i in range(length)]
    return "".join(letters[draw % len(letters)] for letters, draw in zip(sets, draws, strict=True))
