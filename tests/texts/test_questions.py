"""Questions about what must be forgotten: WMDP's multiple choice, and MUSE's behind solved examples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmark_copies import MAKERS, lines, listed
from expunge.audits.performance import Performance
from expunge.base.errors import SpecError
from expunge.core.case import Case
from expunge.core.problem import Problem
from expunge.data.muse import MUSE
from expunge.data.wmdp import WMDP
from expunge.tasks.given import Given

pytest.importorskip("tokenizers")
ROWS = [{"question": f"What is {i}?", "choices": ["red", "blue", "green", "grey"], "answer": i % 4} for i in range(8)]


def wmdp(folder: Path, rows: list[Any], **settings: Any) -> Problem:
    MAKERS["wmdp"](folder)
    lines(folder / "wmdp-bio.jsonl", rows)
    data = WMDP(folder=str(folder), test=str(folder / "wiki.json"), vocabulary=300, **settings)()
    return Given()(data, 0, {})


class Prefers(nn.Module):
    """Gives a high logit to one token everywhere, and to the same next token whatever was read."""

    def __init__(self, outputs: int, token: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs))
        self.token = token

    def forward(self, tokens: Tensor) -> Tensor:
        logits = self.weight.expand(*tokens.shape, -1).clone()
        logits[..., self.token] = 9.0
        return logits


@pytest.mark.parametrize("choose", ["letters", "answers"])
def test_a_model_that_always_answers_the_same_is_at_chance(tmp_path: Path, choose: str) -> None:
    problem = wmdp(tmp_path, ROWS, choose=choose)
    data = problem.data
    assert data.tokenizer is not None and len(problem.questions) == len(ROWS)
    assert not torch.isin(problem.questions, torch.cat([problem.train, problem.test])).any()
    row = int(problem.questions[0])
    prompt = data.tokenizer.decode(data.inputs[row, : data.lengths[row]].tolist())
    assert ("A. red\n" in prompt) == (choose == "letters") and "Answer:" in prompt and "about biology" in prompt
    for token in (data.tokenizer.content(" B")[-1], data.tokenizer.eos):
        model = Prefers(data.objective.outputs, token)
        found = {s.key: s for s in Performance()(model, Case(0, problem, model, None), 0)}
        choice = found["choice", "question"]
        assert choice.values.mean() == 0.25 and choice.role == "knowledge" and not choice.required
        assert choice.baseline is not None and set(choice.baseline) == {0.25}
        assert 0.1 < found["choice_probability", "question"].values.mean() < 0.4


BAD: dict[str, tuple[Any, str]] = {
    "no choices": ({"question": "a", "answer": 0}, "line 1: there is no field 'choices'"),
    "choices that are none": ({"question": "a", "choices": "red", "answer": 0}, "line 1: the field 'choices' is a str"),
    "one choice": ({"question": "a", "choices": ["red"], "answer": 0}, "a list of 2 to 10 texts"),
    "another number": ({"question": "a", "choices": ["red", "blue"], "answer": 2}, "line 1: its answer is 2"),
    "a letter": ({"question": "a", "choices": ["red", "blue"], "answer": "B"}, "line 1: the field 'answer' is a str"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_question_is_one_message(tmp_path: Path, case: str) -> None:
    row, words = BAD[case]
    with pytest.raises(SpecError, match=words):
        wmdp(tmp_path, [row])


def test_questions_of_muse_stand_behind_solved_examples(tmp_path: Path) -> None:
    make: Callable[[Path], Any] = MAKERS["muse"]
    part = make(tmp_path)
    assert Given()(part(), 0, {}).questions.numel() == 0
    (tmp_path / "knowmem").mkdir()
    listed(tmp_path / "knowmem/forget_qa.json", [{"question": "Who?", "answer": "Ann."}])
    listed(tmp_path / "knowmem/forget_qa_icl.json", [{"question": "Where?", "answer": "Rome."}] * 2)
    assert isinstance(part, MUSE)
    data = MUSE(folder=str(tmp_path), vocabulary=300)()
    assert data.questions is not None and data.tokenizer is not None
    row = int(data.questions[0])
    read = data.tokenizer.decode(data.inputs[row, : data.lengths[row]].tolist())
    assert read == "Question: Where?\nAnswer: Rome.\n\n" * 2 + "Question: Who?\nAnswer: Ann."
    answer = data.targets[row][data.targets[row] != -100]
    assert data.tokenizer.decode(answer.tolist()).strip() == "Ann."
