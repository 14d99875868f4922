"""Your own texts: files of questions and answers, conversations or documents, one file a set.

A row of a file has a prompt and an answer, or `messages`, or a `text`; the settings name other fields. The files are
JSON Lines or one JSON list; their content decides. Prompts and padding are not learned, answers and the EOS behind them
are. Documents are cut into chunks of `context` tokens, which form one group. Nothing is left out in silence: a question
that is longer is an error.

The files say what must be forgotten, so a spec needs no `[forget]` table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from expunge.core.data import Data
from expunge.data._texts import Sets
from expunge.data._tokenized import Questions, texts_of_file


@dataclass(frozen=True)
class JSONL(Questions):
    """Texts from your JSON or JSON Lines files."""

    paths: ClassVar[tuple[str, ...]] = ("forget", "retain", "test", "holdout", "tokenizer")

    forget: str
    """File of the texts to forget, relative to the spec file."""
    retain: str
    """File of the rest of the training texts."""
    test: str
    """File of unseen texts, on which utility is measured."""
    holdout: str | None = None
    """Optional file of unseen texts that resemble those to forget."""
    prompt: str = "prompt"
    """Field of the question, or of the start that is given."""
    answer: str = "answer"
    """Field of the answer."""
    text: str = "text"
    """Field of a document."""
    messages: str = "messages"
    """Field of a conversation: objects with `role` and `content`. The last message is the answer."""
    group: str | None = None
    """Field whose value groups texts that belong together, such as those about one person."""
    value: str | None = None
    """Field of the words of the answer that are the fact, such as `Rome`. They are judged apart from the others."""

    def __call__(self) -> Data:
        """Load the texts. Ids count those to forget, the retained, the test and the hold-out texts, in this order.

        Raises:
            MissingError: transformers or tokenizers is not installed, or there is no folder of the tokenizer.
            SpecError: A file cannot be read, or a text is empty, too long or without its fields; the message names the
                line.
        """
        names = {name: getattr(self, name) for name in ("prompt", "answer", "text", "messages", "group", "value")}
        files = {name: getattr(self, name) for name in ("forget", "retain", "test", "holdout")}
        fields = self.fields(**names)
        texts = {name: texts_of_file(Path(file), fields, where=f"data.{name}") for name, file in files.items() if file}
        return self.tokenized(Sets(**texts))
