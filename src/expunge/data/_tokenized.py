"""What all data sets of texts share: the tokenizer of the user's model, or one that is trained, and the context."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

from expunge.base.errors import SpecError
from expunge.base.part import Count
from expunge.core.contracts import Source
from expunge.core.data import Data
from expunge.core.tokens import files_of_tokenizer, model_vocabulary, read_tokenizer, train_tokenizer
from expunge.data._rows import rows_of_file
from expunge.data._texts import Fields, Sets, Text, placed

PROMPT, ANSWER = "{prompt}", "{answer}"


@dataclass(frozen=True, kw_only=True)
class Tokenized(Source):
    """A data set of texts."""

    paths: ClassVar[tuple[str, ...]] = ("tokenizer",)

    tokenizer: str | None = None
    """Folder of the model's tokenizer, usually the model's own folder. By default a byte-level BPE is trained on the
    retained texts."""
    vocabulary: Count = 1024
    """Tokens of the BPE."""
    context: Count = 512
    """Most tokens of an example."""

    def input_files(self) -> dict[str, dict[str, Path]]:
        """The files of the texts, and of the tokenizer without the model's weights beside it."""
        files = super().input_files()
        return files if self.tokenizer is None else files | {"tokenizer": files_of_tokenizer(Path(self.tokenizer))}

    def fingerprint(self) -> dict[str, Any]:
        """Settings, contents of the files, and the version of the library that makes tokens."""
        try:
            library = version("tokenizers")
        except PackageNotFoundError:
            library = ""
        return {**super().fingerprint(), "tokenizers": library}

    def tokenized(self, sets: Sets) -> Data:
        """The data set of some texts.

        Raises:
            MissingError: transformers or tokenizers is not installed, or there is no folder of the tokenizer.
            SpecError: A text is empty or too long; the message has its place.
        """
        if self.tokenizer is None:
            plain = (text.plain for text in sets.retain)
            return sets.data(train_tokenizer(plain, self.vocabulary, "data.vocabulary"), self.context)
        folder = Path(self.tokenizer)
        return sets.data(read_tokenizer(folder, "data.tokenizer"), self.context, model_vocabulary(folder))


@dataclass(frozen=True, kw_only=True)
class Questions(Tokenized):
    """A data set of questions and answers."""

    template: str = "{prompt} {answer}"
    """How prompt and answer become a text."""
    chat: bool = False
    """Whether prompt and answer become a conversation in the tokenizer's chat template instead."""

    def __post_init__(self) -> None:
        super().__post_init__()
        before, found, rest = self.template.partition(PROMPT)
        if not found or ANSWER not in rest or ANSWER in before:
            raise SpecError(f"found {self.template!r}", where="template", allowed="{prompt}, and {answer} behind it")

    def fields(self, **names: Any) -> Fields:
        """How rows are read: names of their fields, and the template."""
        before, _, rest = self.template.partition(PROMPT)
        between, _, after = rest.partition(ANSWER)
        return Fields(**names, before=before, between=between, after=after, chat=self.chat)


def texts_of_file(path: Path, fields: Fields, *, where: str) -> list[Text]:
    """The texts of a file, in its order.

    Args:
        path: JSON Lines or a JSON list.
        fields: How its rows are read.
        where: Place of the path in the spec, for messages.

    Raises:
        SpecError: The file cannot be read, or a row is not as the fields say; the message has its line.
    """
    texts = []
    for place, row in rows_of_file(path, where=where):
        with placed(place, where):
            texts.append(fields.text_of(place, row))
    return texts


def file_in(folder: Path, *names: str, where: str = "data.folder") -> Path:
    """The first of these files that the folder has.

    Raises:
        SpecError: It has none of them.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise SpecError(f"{folder} lacks {names[0]}", where=where, allowed=f"a folder with {' or '.join(names)}")
