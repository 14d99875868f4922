"""From texts to a data set: tokens, masked prompts, chunks of documents, groups, and the sets of a whole problem."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from expunge.base.errors import SpecError, nearest
from expunge.core.choices import MultipleChoice, choice_of
from expunge.core.data import Data
from expunge.core.objective import IGNORE
from expunge.core.tokens import Encoded, Tokenizer, padded


@dataclass(frozen=True)
class Text:
    """One text of a user's file.

    A question has a prompt and an answer, and a conversation has messages. Both are one example. A document has no
    prompt; it is cut into chunks.
    """

    place: str
    """Where the text stands, for messages: `forget.jsonl, line 3`."""
    prompt: str | None = None
    answer: str = ""
    """The answer, or the whole document."""
    messages: Sequence[Mapping[str, str]] = ()
    group: Hashable = None
    """Texts of one group, such as those of one author, stay together; `None` for a group of its own."""
    value: str = ""
    """The fact in the answer, apart from the words around it; empty if nobody says which it is."""
    options: Sequence[str] = ()
    """Answers to choose from, with the right one; none if the question is open."""

    @property
    def plain(self) -> str:
        """All letters of the text, from which a tokenizer may be trained."""
        return "\n".join(message["content"] for message in self.messages) or f"{self.prompt or ''}{self.answer}"

    def encoded(self, tokenizer: Tokenizer, context: int) -> list[Encoded]:
        """Its examples: one, or the chunks of a document.

        Raises:
            SpecError: The text is empty, or a question or conversation is longer than `context` tokens.
        """
        if not self.messages and self.prompt is None:
            return chunks(self.answer, tokenizer, context)
        if self.messages:
            whole = tokenizer.chat(self.messages, self.value)
        else:
            whole = tokenizer.encode(self.prompt or "", self.answer, self.value)
        if len(whole.ids) - 1 > context:
            raise SpecError(
                f"it has {len(whole.ids) - 1} tokens",
                allowed=f"at most {context}, the setting `context`",
                remedy="raise context, or shorten the text; only documents are cut into chunks",
            )
        return [whole]


@dataclass(frozen=True)
class Fields:
    """Names of the fields of a user's rows, and the text around prompt and answer."""

    prompt: str = "prompt"
    answer: str = "answer"
    text: str = "text"
    messages: str = "messages"
    group: str | None = None
    value: str | None = None
    ask: str = "{}"
    """What a prompt becomes, before the template."""
    before: str = ""
    """Text before the prompt."""
    between: str = " "
    """Text between prompt and answer; not decided."""
    after: str = ""
    """Text behind the answer; decided."""
    chat: bool = False
    """Whether prompt and answer become a conversation in the tokenizer's template."""

    def text_of(self, place: str, row: Any) -> Text:
        """The text of a row: a conversation, prompt and answer, or a document, by the fields that it has.

        Raises:
            SpecError: The row lacks a field, or a field is no text.
        """
        if isinstance(row, str):
            return Text(place, answer=row)
        if not isinstance(row, dict):
            raise SpecError(f"it is a {type(row).__name__}", allowed="an object with named fields, or a text")
        group = None if self.group is None else field_of(row, self.group, "group", str | int)
        if self.messages in row:
            messages = _messages(row[self.messages])
            return Text(place, messages=messages, group=group, value=self._value(row, messages[-1]["content"]))
        if self.text in row and self.prompt not in row and self.answer not in row:
            return Text(place, answer=field_of(row, self.text, "text"), group=group)
        prompt, answer = field_of(row, self.prompt, "prompt"), field_of(row, self.answer, "answer")
        prompt, value = self.ask.replace("{}", prompt), self._value(row, answer)
        if self.chat:
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            return Text(place, messages=turns, group=group, value=value)
        return Text(place, f"{self.before}{prompt}{self.between}", f"{answer}{self.after}", group=group, value=value)

    def _value(self, row: Mapping[str, Any], answer: str) -> str:
        """The fact in the answer, where the row names it."""
        if self.value is None or self.value not in row:
            return ""
        value: str = field_of(row, self.value, "value")
        if not value.strip() or value not in answer:
            raise SpecError(
                f"the field {self.value!r} is {value!r}, and the answer does not contain it",
                allowed="words of the answer, letter by letter",
                remedy="leave the field out of rows without such words",
            )
        return value


def field_of(row: Mapping[str, Any], name: str, setting: str, kind: Any = str) -> Any:
    """A field of a row.

    Args:
        row: The row.
        name: The field's name.
        setting: The setting that names the field, for messages.
        kind: Type of the field.

    Raises:
        SpecError: The row has no such field, or the field has another type.
    """
    if name not in row:
        near = nearest(name, row) or f"name yours by the setting `{setting}`"
        raise SpecError(f"there is no field {name!r}", allowed=f"its fields: {', '.join(row) or 'none'}", remedy=near)
    if not isinstance(row[name], kind) or isinstance(row[name], bool):
        raise SpecError(f"the field {name!r} is a {type(row[name]).__name__}", allowed="text")
    return row[name]


def _messages(value: Any) -> list[dict[str, str]]:
    listed = isinstance(value, list) and all(isinstance(message, dict) for message in value)
    plain = listed and all(isinstance(m.get(key), str) for m in value for key in ("role", "content"))
    if not plain or not value:
        raise SpecError("the messages are no conversation", allowed="a list of objects with the texts role and content")
    return [{"role": message["role"], "content": message["content"]} for message in value]


@contextmanager
def placed(place: str, where: str) -> Iterator[None]:
    """An error about a text names the text's place in its file, and the file's place in the spec."""
    try:
        yield
    except SpecError as error:
        finding = f"{place}: {error.finding}"
        raise SpecError(finding, where=where, allowed=error.allowed, remedy=error.remedy) from None


def chunks(document: str, tokenizer: Tokenizer, context: int) -> list[Encoded]:
    """A document as texts of at most `context` tokens, the last one with EOS. No token is lost or repeated as a target.

    What stands before every text, such as BOS, stands before every chunk. Without it, a chunk begins with the last
    token of the chunk before, because its own first token could not be predicted from nothing.

    Raises:
        SpecError: The document is empty.
    """
    if not document.strip():
        raise SpecError("the text is empty", allowed="a text with at least one letter")
    start, ids = list(tokenizer.start), [*tokenizer.content(document), tokenizer.eos]
    overlap = 0 if start else 1
    step = max(context + 1 - len(start) - overlap, 1)
    begins = range(0, max(len(ids) - overlap, 1), step)
    return [Encoded([*start, *ids[at : at + step + overlap]], max(len(start), 1)) for at in begins]


@dataclass(frozen=True)
class Sets:
    """Texts by set. All but `retain` and `test` may be empty."""

    retain: Sequence[Text]
    test: Sequence[Text]
    forget: Sequence[Text] = ()
    holdout: Sequence[Text] = ()
    paraphrases: Sequence[Text] = ()
    questions: Sequence[Text] = ()

    def data(self, tokenizer: Tokenizer, context: int, outputs: int = 0) -> Data:
        """The data set: forget, retain, test and hold-out texts, paraphrases and questions, in this order.

        Args:
            tokenizer: Makes tokens of texts.
            context: Most tokens of an example.
            outputs: Outputs of the model, if they are more than the tokenizer's tokens.

        Raises:
            SpecError: A text is empty or too long, or a set is empty; the message says where.
        """
        ids: dict[str, Tensor] = {}
        examples: list[Encoded] = []
        owners: list[list[Hashable]] = []
        choices: list[MultipleChoice | None] = []
        for name in ("forget", "retain", "test", "holdout", "paraphrases", "questions"):
            first = len(examples)
            for number, text in enumerate(getattr(self, name)):
                with placed(text.place, f"data.{name}"):
                    pieces = text.encoded(tokenizer, context)
                    choices += [choice_of(text.prompt or "", text.answer, text.options)] * len(pieces)
                examples += pieces
                owners += [_keys(text, (name, number), pieces)] * len(pieces)
            ids[name] = torch.arange(first, len(examples))
        inputs, targets, lengths = padded(examples, tokenizer.pad)
        return Data(
            inputs,
            targets,
            torch.cat([ids["forget"], ids["retain"]]),
            ids["test"],
            tokenizer.names(outputs),
            grouped(owners),
            tokenizer=tokenizer,
            lengths=lengths,
            values=marked(examples, targets),
            forget=_if_any(ids["forget"]),
            holdout=_if_any(ids["holdout"]),
            paraphrases=_if_any(ids["paraphrases"]),
            questions=_if_any(ids["questions"]),
            choices=tuple(choices) if any(choices) else None,
        )


def _if_any(ids: Tensor) -> Tensor | None:
    return ids if len(ids) else None


def marked(examples: Sequence[Encoded], targets: Tensor) -> Tensor | None:
    """Which targets are tokens of facts, `[n, t]` bool; `None` if nobody says so of any text."""
    values = torch.zeros(targets.shape, dtype=torch.bool)
    for row, example in enumerate(examples):
        values[row, [at - 1 for at in example.values if at > 0]] = True
    values &= targets != IGNORE
    return values if values.any() else None


def _keys(text: Text, own: Hashable, pieces: Sequence[Encoded]) -> list[Hashable]:
    """What a text has in common with others of its group: itself, the user's group, or all of its tokens.

    Single chunks are not compared: many documents end in the same few tokens.
    """
    shared = [] if text.group is None else [("group", text.group)]
    return [("text", own), *shared, ("copy", tuple(tuple(piece.ids) for piece in pieces))]


def grouped(keys: Iterable[Sequence[Hashable]]) -> Tensor | None:
    """Group of each example, `[n]`: examples with a key in common, also over several steps, have the same.

    Returns:
        The id of the group's first example; `None` if each example is its own group.
    """
    first: dict[Hashable, int] = {}
    parent: list[int] = []

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    for index, own in enumerate(keys):
        parent.append(index)
        for key in own:
            low, high = sorted((root(first.setdefault(key, index)), root(index)))
            parent[high] = low
    groups = torch.tensor([root(index) for index in range(len(parent))])
    return None if len(groups.unique()) == len(groups) else groups
