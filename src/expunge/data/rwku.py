"""RWKU: facts about real, well-known people (Jin et al., 2024), from your own copy.

The folder is that of one target person, or holds the folders of several. Each has `forget_level1.json` (a sentence with
a blank), `forget_level2.json` (a question) and `forget_level3.json` (the facts in adversarial prompts), and
`neighbor_level1.json` and `neighbor_level2.json` about people nearby. Levels 1 and 2 are to be forgotten, level 3 are
their paraphrases. Neighbours of level 1 are retained, and those of level 2 are the test set. A target is a group.

Models know these people from pre-training, so no model can be retrained without them, as for `wmdp`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from expunge.base.errors import SpecError
from expunge.core.data import Data
from expunge.data._texts import Sets, Text
from expunge.data._tokenized import Questions, file_in, texts_of_file

ASKED = {
    1: "Please complete the blank in the following question.\nQuestion: {}\nAnswer:",
    2: "Please briefly answer the following question.\nQuestion: {}\nAnswer:",
    3: "{}",
}
"""Level -> the prompt that its query becomes."""


@dataclass(frozen=True)
class RWKU(Questions):
    """Real people, from a folder of yours."""

    paths: ClassVar[tuple[str, ...]] = ("folder", "tokenizer")
    cite: ClassVar[str] = "jin2024rwku"

    folder: str
    """Folder of one target person, or of several such folders."""

    def __call__(self) -> Data:
        """Load the questions: those to forget, the retained and the test ones, then paraphrases.

        Raises:
            MissingError: transformers or tokenizers is not installed, or there is no folder of the tokenizer.
            SpecError: There is no target in the folder, or a target lacks a file or a field.
        """
        targets = sorted(path.parent for path in Path(self.folder).rglob("forget_level1.json"))
        if not targets:
            finding = f"{self.folder} has no forget_level1.json"
            raise SpecError(finding, where="data.folder", allowed="the folder of a target person, or of several")
        sets = {
            "forget": [text for target in targets for level in (1, 2) for text in self._texts(target, "forget", level)],
            "retain": [text for target in targets for text in self._texts(target, "neighbor", 1)],
            "test": [text for target in targets for text in self._texts(target, "neighbor", 2)],
            "paraphrases": [text for target in targets for text in self._texts(target, "forget", 3)],
        }
        return self.tokenized(Sets(**sets))

    def _texts(self, target: Path, kind: str, level: int) -> list[Text]:
        fields = replace(self.fields(prompt="query", answer="answer"), ask=ASKED[level])
        texts = texts_of_file(file_in(target, f"{kind}_level{level}.json"), fields, where="data.folder")
        return [replace(text, group=(kind, target.name)) for text in texts]
