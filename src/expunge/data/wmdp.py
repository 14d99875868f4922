"""WMDP: corpora of hazardous knowledge about biology or cybersecurity (Li et al., 2024), from your own copy.

The folder holds `bio-forget-corpus.jsonl` and `bio-retain-corpus.jsonl`, or those of `cyber`, with the field `text`.
The knowledge comes from pre-training, so no model can be retrained without it. Without references a run can show that
a model still knows something, but not that it does not. The questions with four choices are not read here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from expunge.core.data import Data
from expunge.data._texts import Fields, Sets
from expunge.data._tokenized import Tokenized, file_in, texts_of_file


@dataclass(frozen=True)
class WMDP(Tokenized):
    """Corpora about biology or cybersecurity, from a folder of yours."""

    paths: ClassVar[tuple[str, ...]] = ("folder", "test", "tokenizer")
    cite: ClassVar[str] = "li2024wmdp"

    folder: str
    """Folder of the corpora."""
    test: str
    """JSON or JSON Lines file of general texts, such as Wikitext, on which utility is measured; field `text`."""
    domain: Literal["bio", "cyber"] = "bio"
    """Which corpora."""

    def __call__(self) -> Data:
        """Load the documents in chunks of `context` tokens: those to forget, the retained, and the test ones.

        Raises:
            MissingError: transformers or tokenizers is not installed, or there is no folder of the tokenizer.
            SpecError: The folder lacks a file, or a row has no text.
        """
        paths = {
            name: file_in(Path(self.folder), f"{self.domain}-{name}-corpus.jsonl", f"{self.domain}-{name}-corpus.json")
            for name in ("forget", "retain")
        }
        texts = {name: texts_of_file(path, Fields(), where="data.folder") for name, path in paths.items()}
        return self.tokenized(Sets(**texts, test=texts_of_file(Path(self.test), Fields(), where="data.test")))
