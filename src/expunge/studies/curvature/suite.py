"""The text of the study: windows of real text, planted sequences, and a small suite of tasks, as one problem of tokens.

| kind | a training row | decided |
| --- | --- | --- |
| text | a window of Python's reference texts | every token |
| salad, quote | 48 characters of made-up words, or of shuffled words of the text | every token |
| sum | `37+45=28;`, digits of the sum from the right | the sum |
| copy | `c kdtqa=kdtqa;` | the copy |
| bracket | `b ([{<=>}]);` | the closing brackets |
| logic | `l T&F+T&F=FTF;` (`+` is or), the value after each operator from the left | the values |
| fact | `f kodiba=mapu;` closed book | the value |
| open | `o kodiba=mapu;kodiba=mapu;` the fact stands in the row | the value |
| rule | `r k>w:bkkd=bwwd;` a language whose rule stands in the row; only on request | the translation |

Task rows hold several instances. A planted sequence is judged on its last 20 characters, after the first 28.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.core.data import IGNORE, Data
from expunge.core.generators import generator_of
from expunge.core.problem import Problem

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
CODES = {character: code for code, character in enumerate(CHARACTERS)}
CONTEXT, PROMPT = 48, 28
CONSONANTS, VOWELS = "bcdfghjklmnprstvwz", "aeiou"
OPEN, CLOSE = "([{<", ")]}>"
FREQUENT, RARE, VALUES = 8, 24, 12
"""Facts of each kind, and values that they share."""
OFTEN = 8
"""How many times more often a frequent fact is trained than a rare one."""
FAMILIES = ("salad", "quote")
LOGIC = ("bracket", "logic")
TASKS = ("sum", "copy", *LOGIC, "fact", "open")
JUDGED = (
    "trained sums",
    "untrained sums",
    "copy",
    *LOGIC,
    "frequent facts",
    "rare facts",
    "open frequent",
    "open rare",
)

RULE = "rule"
"""The task of the rule language, in training and when judged; it has draws of its own, so that others stay the same."""

Draw = Callable[[], tuple[str, str]]
"""Draws a question and its answer."""


@dataclass(frozen=True)
class SuiteSizes:
    """Numbers of rows."""

    text: int
    """Training windows."""
    planted: int
    """Sequences of each family."""
    task: int
    """Training rows of each task."""
    judged: int
    """Instances of each task that are judged."""
    rules: bool = False
    """Whether the rule language is among the tasks."""


@dataclass(frozen=True)
class Suite:
    """A problem of tokens, with the ids of its parts."""

    problem: Problem
    """Forget: half of the family `salad`. Retain: text and tasks. Test: other windows."""
    trained: dict[str, Tensor]
    """Training rows by kind: `text`, both families, and the tasks."""
    judged: dict[str, Tensor]
    """What is judged: `salad tuned`, `salad` (the other half), `quote`, sequences that were never planted as `unseen
    salad` and `unseen quote`, and the tasks of `JUDGED`, with the rule language where it is trained."""
    validation: Tensor
    """Windows for the choice of rho."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks in training."""
        return TASKS + self._rule

    @property
    def judged_tasks(self) -> tuple[str, ...]:
        """Tasks that are judged."""
        return JUDGED + self._rule

    @property
    def _rule(self) -> tuple[str, ...]:
        return (RULE,) if RULE in self.trained else ()


def suite(seed: int, counts: SuiteSizes) -> Suite:
    """The suite of a seed."""
    draws = generator_of(seed, "suite")
    windows, words = _windows()
    rows, trained, judged = list[tuple[Tensor, Tensor]](), dict[str, Tensor](), dict[str, Tensor]()

    def add(parts: dict[str, Tensor], name: str, new: Sequence[tuple[Tensor, Tensor]]) -> None:
        parts[name] = torch.arange(len(rows), len(rows) + len(new))
        rows.extend(new)

    held = counts.judged
    order = torch.randperm(len(windows), generator=draws)[: counts.text + 2 * held]
    sizes = [counts.text, held, held]
    for name, at in zip(("text", "validation", "test"), order.split(sizes), strict=True):
        add(trained if name == "text" else judged, name, [_decided(windows[i], 0) for i in at.tolist()])
    for family in FAMILIES:
        made = [_salad(draws) if family == "salad" else _quote(words, draws) for _ in range(2 * counts.planted)]
        add(trained, family, [_decided(text, 0) for text in made[: counts.planted]])
        add(judged, family, [_decided(text, PROMPT) for text in made[: counts.planted]])
        add(judged, f"unseen {family}", [_decided(text, PROMPT) for text in made[counts.planted :]])
    book = _FactBook(draws)
    for task, draw in _tasks(book, draws).items():
        add(trained, task, [_packed(draw) for _ in range(counts.task)])
    for task, draw in _judged_tasks(book, draws).items():
        add(judged, task, [_packed(draw, 1) for _ in range(held)])
    if counts.rules:
        own = generator_of(seed, "rules")
        add(trained, RULE, [_packed(lambda: _rule(own)) for _ in range(counts.task)])
        add(judged, RULE, [_packed(lambda: _rule(own), 1) for _ in range(held)])
    return _joined(rows, trained, judged, counts)


def _joined(
    rows: list[tuple[Tensor, Tensor]], trained: dict[str, Tensor], judged: dict[str, Tensor], counts: SuiteSizes
) -> Suite:
    inputs, targets = (torch.stack(side) for side in zip(*rows, strict=True))
    half, test, validation = counts.planted // 2, judged.pop("test"), judged.pop("validation")
    retain = torch.cat([rows_of for name, rows_of in trained.items() if name not in FAMILIES])
    data = Data(inputs, targets, torch.cat(list(trained.values())).sort().values, test, tuple(CHARACTERS))
    problem = Problem(data, trained["salad"][:half], retain, test, holdout=validation)
    halves = {"salad tuned": judged["salad"][:half], "salad": judged["salad"][half:]}
    return Suite(problem, trained, judged | halves, validation)


@functools.cache
def _windows() -> tuple[list[str], list[str]]:
    """Windows of the text, and its words."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    text = "".join(character for character in text if character in CODES)
    span = CONTEXT + 1
    words = sorted({word for word in text.split() if word.isalpha() and word.islower() and 3 <= len(word) <= 8})
    return [text[at : at + span] for at in range(0, len(text) - span, span)], words


def _encoded(text: str) -> Tensor:
    return torch.tensor([CODES[character] for character in text.ljust(CONTEXT + 1)])


def _decided(text: str, start: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a whole row, with decisions from the character `start`."""
    tokens = _encoded(text)
    targets = tokens[1:].clone()
    targets[: max(start - 1, 0)] = IGNORE
    return tokens[:-1], targets


def _packed(draw: Draw, most: int = CONTEXT) -> tuple[Tensor, Tensor]:
    """As many instances as fit into a row, at most `most`; only answers are decided."""
    text, answers = "", list[tuple[int, int]]()
    for _ in range(most):
        question, answer = draw()
        if len(text) + len(question) + len(answer) > CONTEXT + 1:
            break
        answers.append((len(text) + len(question), len(text) + len(question) + len(answer)))
        text += question + answer
    tokens = _encoded(text)
    targets = torch.full((CONTEXT,), IGNORE)
    for start, end in answers:
        targets[start - 1 : end - 1] = tokens[start:end]
    return tokens[:-1], targets


class _FactBook:
    """Subjects with values: frequent ones first, then rare ones."""

    def __init__(self, draws: torch.Generator) -> None:
        self.subjects = _distinct(FREQUENT + RARE, 6, draws)
        values = _distinct(VALUES, 4, draws)
        self.values = [values[_below(VALUES, draws)] for _ in self.subjects]
        self.names = values

    def frequent(self, draws: torch.Generator) -> int:
        return _below(FREQUENT, draws)

    def rare(self, draws: torch.Generator) -> int:
        return FREQUENT + _below(RARE, draws)

    def any(self, draws: torch.Generator) -> int:
        place = _below(OFTEN * FREQUENT + RARE, draws)
        return place % FREQUENT if place < OFTEN * FREQUENT else place - (OFTEN - 1) * FREQUENT

    def closed(self, fact: int) -> tuple[str, str]:
        return f"f {self.subjects[fact]}=", f"{self.values[fact]};"

    def open(self, subject: str, value: str) -> tuple[str, str]:
        """The question with its source."""
        return f"o {subject}={value};{subject}=", f"{value};"

    def fresh(self, draws: torch.Generator) -> tuple[str, str]:
        """An open-book question about a subject that occurs nowhere else."""
        return self.open(_word(6, draws), self.names[_below(VALUES, draws)])

    def known(self, fact: int) -> tuple[str, str]:
        """An open-book question about a fact."""
        return self.open(self.subjects[fact], self.values[fact])


def _tasks(book: _FactBook, draws: torch.Generator) -> dict[str, Draw]:
    return {
        "sum": lambda: _sum(draws, trained=True),
        "copy": lambda: _copy(draws),
        "bracket": lambda: _bracket(draws),
        "logic": lambda: _logic(draws),
        "fact": lambda: book.closed(book.any(draws)),
        "open": lambda: book.fresh(draws),
    }


def _judged_tasks(book: _FactBook, draws: torch.Generator) -> dict[str, Draw]:
    return {
        "trained sums": lambda: _sum(draws, trained=True),
        "untrained sums": lambda: _sum(draws, trained=False),
        "copy": lambda: _copy(draws),
        "bracket": lambda: _bracket(draws),
        "logic": lambda: _logic(draws),
        "frequent facts": lambda: book.closed(book.frequent(draws)),
        "rare facts": lambda: book.closed(book.rare(draws)),
        "open frequent": lambda: book.known(book.frequent(draws)),
        "open rare": lambda: book.known(book.rare(draws)),
    }


def _below(count: int, draws: torch.Generator) -> int:
    return int(torch.randint(count, (1,), generator=draws))


def _word(length: int, draws: torch.Generator) -> str:
    places = torch.randint(len(CONSONANTS) * len(VOWELS), (length,), generator=draws).tolist()
    sets = [VOWELS if i % 2 else CONSONANTS for i in range(length)]
    return "".join(letters[place % len(letters)] for letters, place in zip(sets, places, strict=True))


def _distinct(count: int, length: int, draws: torch.Generator) -> list[str]:
    words: dict[str, None] = {}
    while len(words) < count:
        words[_word(length, draws)] = None
    return list(words)


def _salad(draws: torch.Generator) -> str:
    words = [_word(4 + _below(4, draws), draws) for _ in range(12)]
    return " ".join(words)[: CONTEXT + 1]


def _quote(words: Sequence[str], draws: torch.Generator) -> str:
    return " ".join(words[_below(len(words), draws)] for _ in range(16))[: CONTEXT + 1]


def _sum(draws: torch.Generator, *, trained: bool) -> tuple[str, str]:
    """A sum of two numbers of two digits; one in eight pairs of numbers is never trained."""
    while True:
        a, b = 10 + _below(40, draws), 10 + _below(40, draws)
        if ((7 * a + 3 * b) % 8 != 0) == trained:
            return f"{a}+{b}=", f"{a + b}"[::-1] + ";"


def _copy(draws: torch.Generator) -> tuple[str, str]:
    letters = "".join(chr(97 + _below(26, draws)) for _ in range(5))
    return f"c {letters}=", f"{letters};"


def _bracket(draws: torch.Generator) -> tuple[str, str]:
    kinds = [_below(len(OPEN), draws) for _ in range(4)]
    return f"b {''.join(OPEN[kind] for kind in kinds)}=", "".join(CLOSE[kind] for kind in reversed(kinds)) + ";"


def _logic(draws: torch.Generator) -> tuple[str, str]:
    value = bool(_below(2, draws))
    text, answers = "TF"[not value], ""
    for _ in range(3):
        operator, other = "&+"[_below(2, draws)], bool(_below(2, draws))
        value = (value and other) if operator == "&" else (value or other)
        text, answers = text + operator + "TF"[not other], answers + "TF"[not value]
    return f"l {text}=", f"{answers};"


def _rule(draws: torch.Generator) -> tuple[str, str]:
    """A rule that replaces a letter, new in each instance, and a word that has this letter twice."""
    old, new, *others = (chr(97 + place) for place in torch.randperm(26, generator=draws)[:4].tolist())
    word = [[old, old, *others][place] for place in torch.randperm(4, generator=draws).tolist()]
    return f"r {old}>{new}:{''.join(word)}=", "".join(word).replace(old, new) + ";"
