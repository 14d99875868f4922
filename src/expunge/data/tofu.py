"""TOFU: questions and answers about 200 made-up authors (Maini et al., 2024; MIT licence), from your own copy.

The folder holds `forget10.json`, `retain90.json` and so on, and `real_authors.json` and `world_facts.json`, which are
the test set: a model knows them from before. If it also holds `holdout10.json`, this is the hold-out. If it holds
`forget10_perturbed.json`, its paraphrased questions and answers are judged, too. The files are named `.json` and hold
JSON Lines. Each 20 rows are one author, and the questions about an author are a group.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from expunge.base.errors import SpecError
from expunge.core.data import Data
from expunge.data._texts import Sets, Text
from expunge.data._tokenized import Questions, file_in, texts_of_file

AUTHOR = 20
"""Questions about each author."""
SHARES = {"forget01": "99", "forget05": "95", "forget10": "90"}


@dataclass(frozen=True)
class TOFU(Questions):
    """Made-up authors, from a folder of yours."""

    paths: ClassVar[tuple[str, ...]] = ("folder", "tokenizer")
    cite: ClassVar[str] = "maini2024tofu"

    folder: str
    """Folder of the data set's JSON files."""
    forget: Literal["forget01", "forget05", "forget10"] = "forget10"
    """Which authors to forget: 1, 5 or 10 % of them, the last ones."""

    def __call__(self) -> Data:
        """Load the questions: those to forget, the retained, the test and the hold-out ones, then paraphrases.

        Raises:
            MissingError: transformers or tokenizers is not installed, or there is no folder of the tokenizer.
            SpecError: The folder lacks a file, or a file is not as TOFU's.
        """
        share = self.forget.removeprefix("forget")
        sets = {"forget": self._authors(self.forget), "retain": self._authors(f"retain{SHARES[self.forget]}")}
        if (Path(self.folder) / f"holdout{share}.json").is_file():
            sets["holdout"] = self._authors(f"holdout{share}")
        if (Path(self.folder) / f"{self.forget}_perturbed.json").is_file():
            sets["paraphrases"] = self._authors(f"{self.forget}_perturbed", "paraphrased_", of=self.forget)
        test = [text for name in ("real_authors", "world_facts") for text in self._texts(name)]
        return self.tokenized(Sets(**sets, test=test))

    def _authors(self, name: str, prefix: str = "", of: str = "") -> list[Text]:
        """The texts of a file, grouped by author; `of` is the file whose authors they are, if it is another."""
        texts = self._texts(name, prefix)
        if len(texts) % AUTHOR:
            finding = f"{name}.json has {len(texts)} rows"
            raise SpecError(finding, where="data.folder", allowed=f"{AUTHOR} rows for each author")
        return [replace(text, group=(of or name, row // AUTHOR)) for row, text in enumerate(texts)]

    def _texts(self, name: str, prefix: str = "") -> list[Text]:
        fields = self.fields(prompt=f"{prefix}question", answer=f"{prefix}answer")
        return texts_of_file(file_in(Path(self.folder), f"{name}.json", f"{name}.jsonl"), fields, where="data.folder")
