"""A language model's own in-context answers beside concept regression's: the part of `cb_icl` that needs such a model.

    python examples/smollm2.py    # once: writes the folder of SmolLM2-135M
    expunge study expunge.studies.cb_icl.prompting:PromptingStudy --preset cpu

It trains nothing. The model is the same for all seeds; a seed draws the questions and the demonstrations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from expunge.base.part import Count
from expunge.evidence.claim import Claim, Measured, above
from expunge.studies.cb_icl import language_model
from expunge.study.read import array
from expunge.study.study import Preset, Study, Work

NUMBERS = (1, 4, 16)
"""Demonstrations."""


@dataclass(frozen=True)
class PromptingStudy(Study):
    """Few-shot prompting of SmolLM2-135M beside concept regression from its embeddings."""

    cite: ClassVar[str] = "tang2025concept"
    paper: ClassVar[str] = "Concept-Based In-Context Learning, 2025"
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            "reads_more_than_it_says",
            "Concept regression from the embeddings of SmolLM2-135M answers more questions about countries right than "
            "the model itself, after the same demonstrations as a prompt: difference of the accuracies, at each number "
            "of demonstrations. The model's own answer is the option with the largest sum, or the largest mean, of "
            "log-probabilities of its tokens; of these two ways the more accurate one counts.",
            "2509.20882, CB-ICL beside in-context learning; questions and model are ours",
            above(0.0, "0 is no difference; the paper reports both signs."),
            "share",
            primary=True,
        ),
    )
    presets: ClassVar[Mapping[str, Preset]] = {
        "quick": Preset((0,), {"queries": 4}),
        "cpu": Preset((0, 1, 2, 3, 4, 5)),
        "long": Preset(tuple(range(12)), {"queries": 200}),
        "paper": Preset((0,), lacks="MMLU, MMLU-Pro, GPQA and the paper's language models"),
    }

    model: str = "examples/smollm2/model"
    """Folder of the language model, relative to the working folder."""
    queries: Count = 60
    """Questions of each seed, with four options each."""

    def measure(self, seed: int, work: Work, basis: Mapping[str, Any]) -> Measured:
        """Accuracies of one draw of questions."""
        table = language_model.accuracies(self.model, self.queries, NUMBERS, seed)
        own = map(max, table["total"], table["mean"])
        gaps = {f"n = {n}": read - said for n, read, said in zip(NUMBERS, table["read"], own, strict=True)}
        return {**array("reads_more_than_it_says", gaps), "accuracies": table}
