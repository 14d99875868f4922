"""MUSE: news articles or books to forget (Shi et al., 2024), from your own copy.

The folder is that of one corpus and holds `raw/forget`, `raw/retain1`, `raw/retain2` and `raw/holdout`, as `.json` (a
list of strings, or of objects with `text`) or `.txt` (one document). `retain1` is what a method may use, so it is the
retain set. `retain2` is what MUSE audits, so it is the test set: here no model trains on it. The chunks of an article
are a group.

If the folder also holds `knowmem/forget_qa.json`, its questions are judged too. As in MUSE, each stands behind the
examples of `knowmem/forget_qa_icl.json`, if that is there, as `Question: ...` and `Answer: ...`. The audit `generated`
measures ROUGE-L recall of the answers; MUSE's KnowMem is the F1 of it, of at most 32 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from expunge.base.errors import SpecError
from expunge.base.reading import read_given
from expunge.core.data import Data
from expunge.data._texts import Fields, Sets, Text
from expunge.data._tokenized import Tokenized, file_in, texts_of_file

FILES = {"forget": "forget", "retain": "retain1", "test": "retain2", "holdout": "holdout"}
"""Set -> name of its file."""


@dataclass(frozen=True)
class MUSE(Tokenized):
    """News or books, from a folder of yours."""

    paths: ClassVar[tuple[str, ...]] = ("folder", "tokenizer")
    cite: ClassVar[str] = "shi2024muse"

    folder: str
    """Folder of one corpus, with the folder `raw` inside."""

    def __call__(self) -> Data:
        """Load the texts in chunks of `context` tokens: those to forget, the retained, the test and the hold-out ones.

        Raises:
            MissingError: transformers or tokenizers is not installed, or there is no folder of the tokenizer.
            SpecError: The folder lacks a file, or a file is not as MUSE's.
        """
        texts = {name: self._texts(file) for name, file in FILES.items()}
        return self.tokenized(Sets(**texts, questions=self._questions()))

    def _questions(self) -> list[Text]:
        """The questions about what must be forgotten, each behind the same solved examples."""
        folder = Path(self.folder) / "knowmem"
        file, examples = folder / "forget_qa.json", folder / "forget_qa_icl.json"
        if not file.is_file():
            return []
        fields = Fields("question", "answer", before="Question: ", between="\nAnswer: ")
        solved = texts_of_file(examples, fields, where="data.folder") if examples.is_file() else []
        shown = "".join(f"{text.prompt}{text.answer}\n\n" for text in solved)
        return [
            replace(text, prompt=f"{shown}{text.prompt}") for text in texts_of_file(file, fields, where="data.folder")
        ]

    def _texts(self, name: str) -> list[Text]:
        path = file_in(Path(self.folder) / "raw", f"{name}.json", f"{name}.txt")
        if path.suffix == ".json":
            return texts_of_file(path, Fields(), where="data.folder")
        try:
            return [Text(path.name, answer=read_given(path, where="data.folder").decode("utf-8-sig"))]
        except UnicodeDecodeError as error:
            raise SpecError(f"{path} is not UTF-8 ({error.reason})", where="data.folder", allowed="text") from None
