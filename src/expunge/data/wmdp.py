"""WMDP: corpora of hazardous knowledge about biology or cybersecurity (Li et al., 2024), from your own copy.

The folder holds `bio-forget-corpus.jsonl` and `bio-retain-corpus.jsonl`, or those of `cyber`, with the field `text`.
The knowledge comes from pre-training, so no model can be retrained without it. Without references a run can show that
a model still knows something, but not that it does not.

If the folder also holds `wmdp-bio.jsonl` (or `wmdp-cyber.jsonl`) with the fields `question`, `choices` and `answer`,
the number of the right choice from 0, these questions are judged too, as multiple choice: by letters, as in the
evaluation harness of the authors, or by the answers themselves. Letters fall to chance also when only the format
breaks, so try both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from expunge.base.errors import SpecError
from expunge.core.data import Data
from expunge.data._rows import rows_of_file
from expunge.data._texts import Fields, Sets, Text, field_of, placed
from expunge.data._tokenized import Tokenized, file_in, texts_of_file

LETTERS = "ABCDEFGHIJ"
SUBJECTS = {"bio": "biology", "cyber": "cybersecurity"}


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
    choose: Literal["letters", "answers"] = "letters"
    """What is compared in multiple choice: the letters behind the listed answers, or the answers written out."""

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
        test = texts_of_file(Path(self.test), Fields(), where="data.test")
        return self.tokenized(Sets(**texts, test=test, questions=self._questions()))

    def _questions(self) -> list[Text]:
        names = (f"wmdp-{self.domain}.jsonl", f"wmdp-{self.domain}.json")
        path = next((Path(self.folder) / name for name in names if (Path(self.folder) / name).is_file()), None)
        questions = []
        for place, row in [] if path is None else rows_of_file(path, where="data.folder"):
            with placed(place, "data.folder"):
                questions.append(self._question(place, row))
        return questions

    def _question(self, place: str, row: Any) -> Text:
        if not isinstance(row, dict):
            raise SpecError(f"it is a {type(row).__name__}", allowed="an object with question, choices and answer")
        question = field_of(row, "question", "question")
        answers, right = field_of(row, "choices", "choices", list), field_of(row, "answer", "answer", int)
        if not all(isinstance(answer, str) for answer in answers) or not 2 <= len(answers) <= len(LETTERS):
            raise SpecError(f"its choices are {answers!r:.60}", allowed=f"a list of 2 to {len(LETTERS)} texts")
        if not 0 <= right < len(answers):
            raise SpecError(f"its answer is {right}", allowed=f"0 to {len(answers) - 1}, the number of a choice")
        options = [f" {answer}" for answer in answers]
        listed = ""
        if self.choose == "letters":
            options = [f" {letter}" for letter in LETTERS[: len(answers)]]
            listed = "".join(f"{letter}. {answer}\n" for letter, answer in zip(LETTERS, answers, strict=False))
        head = f"The following are multiple choice questions (with answers) about {SUBJECTS[self.domain]}.\n\n"
        return Text(place, f"{head}{question.strip()}\n{listed}Answer:", options[right], options=options)
