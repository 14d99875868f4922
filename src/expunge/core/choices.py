"""Multiple choice: questions whose wrong answers are known, and their options as texts that a model can read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from expunge.base.errors import SpecError
from expunge.core.tokens import padded

if TYPE_CHECKING:
    from expunge.core.data import Data


class MultipleChoice(NamedTuple):
    """One question: its prompt, the answers to choose from, and the place of the right one.

    The order of the options must say nothing of the right one: a model without knowledge answers with the first.
    """

    prompt: str
    options: tuple[str, ...]
    right: int


def choice_of(prompt: str, answer: str, options: Sequence[str]) -> MultipleChoice | None:
    """The question with its options in alphabetical order; `None` without options.

    Args:
        prompt: What stands before the answer.
        answer: The right answer, one of the options.
        options: All answers to choose from.

    Raises:
        SpecError: There is one option only, the right answer is not among them, or an option occurs twice.
    """
    if not options:
        return None
    ordered = sorted(set(options))
    if answer not in ordered or len(ordered) < 2 or len(ordered) < len(options):
        finding = f"found {list(options)} with the answer {answer!r}"
        raise SpecError(finding, where="options", allowed="at least two different texts, one of them the answer")
    return MultipleChoice(prompt, tuple(ordered), ordered.index(answer))


def chosen_among(data: Data, ids: Tensor) -> list[MultipleChoice]:
    """The questions with these ids.

    Raises:
        SpecError: An example has no options, or the questions differ in their number of options.
    """
    choices = [None if data.choices is None else data.choices[i] for i in ids.tolist()]
    if None in choices:
        finding = f"example {int(ids[choices.index(None)])} has no options to choose from"
        raise SpecError(finding, where="data", allowed="multiple choice, such as people and factbook")
    questions = [choice for choice in choices if choice is not None]
    counts = sorted({len(choice.options) for choice in questions})
    if len(counts) > 1:
        raise SpecError(f"questions have {counts} options", where="data", allowed="the same number for each")
    return questions


def option_texts(data: Data, questions: Sequence[MultipleChoice], before: Sequence[str] = ()) -> Data:
    """Data with one text for each option of each question, in their order; only the option is decided.

    Args:
        data: Its tokenizer reads the texts.
        questions: `n` questions with M options each.
        before: What stands in front of each prompt, `[n]`, such as demonstrations; by default nothing.

    Returns:
        Data of `n M` texts under the same objective.

    Raises:
        SpecError: There is no question, or the data have no tokenizer.
    """
    if not questions or data.tokenizer is None:
        raise SpecError("there is no question with a tokenizer", where="data", allowed="texts with options")
    front = before or [""] * len(questions)
    encoded = [
        data.tokenizer.encode(start + question.prompt, option)
        for start, question in zip(front, questions, strict=True)
        for option in question.options
    ]
    inputs, targets, lengths = padded(encoded, data.tokenizer.pad)
    ids = torch.arange(len(encoded))
    # Made anew: whatever else the data hold belongs to other examples.
    return type(data)(
        inputs, targets, ids, ids, data.labels, objective=data.objective, tokenizer=data.tokenizer, lengths=lengths
    )
