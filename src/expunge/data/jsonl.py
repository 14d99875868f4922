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
from typing import Any, ClassVar

from expunge.base.errors import SpecError
from expunge.base.part import Count
from expunge.core.contracts import Source
from expunge.core.data import Data
from expunge.core.tokens import Tokenizer, files_of_tokenizer, model_vocabulary, read_tokenizer, train_tokenizer
from expunge.data._rows import rows_of_file
from expunge.data._texts import Fields, Sets, Text, placed

PROMPT, ANSWER = "{prompt}", "{answer}"


@dataclass(frozen=True)
class JSONL(Source):
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
    tokenizer: str | None = None
    """Folder of the model's tokenizer, usually the model's own folder. By default a byte-level BPE is trained on the
    retained texts."""
    vocabulary: Count = 1024
    """Tokens of the BPE."""
    context: Count = 512
    """Most tokens of an example."""
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
    template: str = "{prompt} {answer}"
    """How prompt and answer become a text."""
    chat: bool = False
    """Whether prompt and answer become a conversation in the tokenizer's chat template instead."""

    def __post_init__(self) -> None:
        super().__post_init__()
        before, found, rest = self.template.partition(PROMPT)
        if not found or ANSWER not in rest or ANSWER in before:
            raise SpecError(f"found {self.template!r}", where="template", allowed="{prompt}, and {answer} behind it")

    def input_files(self) -> dict[str, dict[str, Path]]:
        """The files of the texts, and of the tokenizer without the model's weights beside it."""
        files = super().input_files()
        return files if self.tokenizer is None else files | {"tokenizer": files_of_tokenizer(Path(self.tokenizer))}

    def __call__(self) -> Data:
        """Load the texts. Ids count those to forget, the retained, the test and the hold-out texts, in this order.

        Raises:
            MissingError: transformers or tokenizers is not installed, or there is no folder of the tokenizer.
            SpecError: A file cannot be read, or a text is empty, too long or without its fields; the message names the
                line.
        """
        names = [name for name in ("forget", "retain", "test", "holdout") if getattr(self, name)]
        texts = {name: self._texts(name) for name in names}
        return Sets(**texts).data(self._tokenizer(texts["retain"]), self.context, self._outputs())

    def _texts(self, name: str) -> list[Text]:
        where, fields, texts = f"data.{name}", self._fields(), []
        for place, row in rows_of_file(Path(getattr(self, name)), where=where):
            with placed(place, where):
                texts.append(fields.text_of(place, row))
        return texts

    def _fields(self) -> Fields:
        before, _, rest = self.template.partition(PROMPT)
        between, _, after = rest.partition(ANSWER)
        names = {name: getattr(self, name) for name in ("prompt", "answer", "text", "messages", "group", "chat")}
        return Fields(**names, before=before, between=between, after=after)

    def _tokenizer(self, retained: list[Text]) -> Tokenizer:
        if self.tokenizer is not None:
            return read_tokenizer(Path(self.tokenizer), "data.tokenizer")
        return train_tokenizer([text.plain for text in retained], self.vocabulary, "data.vocabulary")

    def _outputs(self) -> int:
        return 0 if self.tokenizer is None else model_vocabulary(Path(self.tokenizer))

    def fingerprint(self) -> dict[str, Any]:
        """Settings, contents of the files, and the version of the library that makes tokens."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            library = version("tokenizers")
        except PackageNotFoundError:
            library = ""
        return {**super().fingerprint(), "tokenizers": library}
