"""Made-up people, each with six facts: a small language model learns them by heart, and no retrained one can know them.

Each fact has three pairs of question and answer. People are trained on two of them, and the third is a paraphrase, on
which no model trains. A public population, which everybody trains on, shows all three pairs. Without it a model
recites the trained answers, and does not know them in other words.

In each ten people in a row every value occurs once. So a task that forgets whole tens leaves the share of each value
as it was, and what a retrained model guesses does not depend on who was forgotten. The tokenizer is trained on the
templates, the values and *other* names. The task `people` chooses who is forgotten.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from expunge.base.errors import SpecError
from expunge.base.part import Count, Natural
from expunge.core.contracts import Source
from expunge.core.data import Data
from expunge.core.tokens import Tokenizer, train_tokenizer
from expunge.data._facts import PAIRS, Person, names, people
from expunge.data._facts import VALUES as VALUES
from expunge.data._texts import Sets, Text

TRAINED, PARAPHRASE, ALL = range(PAIRS - 1), range(PAIRS - 1, PAIRS), range(PAIRS)
STRANGERS = 100
"""Names on which the tokenizer is trained, and which nobody in the data has."""
CONTEXT = 512


@dataclass(frozen=True)
class People(Source):
    """Questions and answers about made-up people."""

    people: Count = 100
    """People who may be forgotten; a multiple of 10, as the other numbers of people."""
    public: Count = 100
    """People of the public population, who are never forgotten."""
    holdout: Count = 10
    """People whom no model sees and who resemble those to forget; as many as are forgotten."""
    test: Count = 20
    """Further people whom no model sees; utility is measured on them."""
    seed: Natural = 0
    """Seed of all names and values; the people are the same for all seeds of a run."""
    vocabulary: Count = 1024
    """Tokens of the byte-level BPE."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("people", "public", "holdout", "test"):
            if getattr(self, name) % VALUES:
                finding = f"{getattr(self, name)} people cannot have each of {VALUES} values equally often"
                raise SpecError(finding, where=name, allowed=f"a multiple of {VALUES}")

    def __call__(self) -> Data:
        """Load the texts. Ids count the people, the public population, the test and the hold-out, then paraphrases.

        Raises:
            MissingError: The package tokenizers is not installed.
        """
        sizes = {name: getattr(self, name) for name in ("people", "public", "test", "holdout")}
        drawn = iter(names(sum(sizes.values()) + STRANGERS, self.seed))
        groups = {
            name: people(count, list(itertools.islice(drawn, count)), self.seed, name) for name, count in sizes.items()
        }
        sets = Sets(
            retain=[*_texts(groups["people"], TRAINED), *_texts(groups["public"], ALL)],
            test=list(_texts(groups["test"], TRAINED)),
            holdout=list(_texts(groups["holdout"], TRAINED)),
            paraphrases=list(_texts(groups["people"], PARAPHRASE)),
        )
        return sets.data(self._tokenizer(list(drawn)), CONTEXT)

    def _tokenizer(self, strangers: list[str]) -> Tokenizer:
        population = people(STRANGERS, strangers, self.seed, "strangers")
        return train_tokenizer((text.plain for text in _texts(population, ALL)), self.vocabulary, "data.vocabulary")


def _texts(population: list[Person], pairs: range) -> Iterator[Text]:
    for person in population:
        for question, answer, value, options in person.questions(pairs):
            yield Text(person.name, f"{question} ", answer, group=person.name, value=value, options=options)
