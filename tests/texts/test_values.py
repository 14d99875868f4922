"""Facts are told from the words around them: their tokens in every form of a row, and the models that this separates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from expunge.audits.performance import Performance
from expunge.base.errors import SpecError
from expunge.core.case import Case
from expunge.core.data import Data
from expunge.core.problem import Problem
from expunge.data._facts import ATTRIBUTES
from expunge.data.jsonl import JSONL
from expunge.data.people import People
from expunge.evidence.scores import Scores
from expunge.tasks.people import People as Forget

pytest.importorskip("tokenizers")
TOWNS = ("Rome", "New York", "Oslo", "Rio de Janeiro")


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Forget()(People(people=20, public=10, holdout=10, test=10)(), 3, {})


def said(data: Data, row: int) -> str:
    assert data.values is not None and data.tokenizer is not None
    return data.tokenizer.decode(data.targets[row][data.values[row]].tolist())


def test_the_facts_of_made_up_people_are_their_values(problem: Problem) -> None:
    values = [value for attribute in ATTRIBUTES for value in attribute.values]
    data = problem.data
    assert {said(data, row).strip() for row in range(len(data))} == set(values)


def row(town: str, i: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"Where is {town}{i}?", "answer": f"{town} is where {i} lives, in {town}.", "fact": town} | more


def loaded(folder: Path, forget: list[dict[str, Any]], **settings: Any) -> Data:
    rest = [row(town, i) for i, town in enumerate(TOWNS * 3)]
    for name, rows in {"forget": forget, "retain": rest, "test": [row("Lima", 40)]}.items():
        (folder / name).write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    paths = {name: str(folder / name) for name in ("forget", "retain", "test")}
    return JSONL(**{**paths, "vocabulary": 300, "value": "fact", **settings})()


FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "question": ({}, {}),
    "template": ({}, {"template": "Q: {prompt}\nA: {answer} Bye!"}),
    "no space": ({}, {"template": "{prompt}{answer}"}),
    "at the start": ({"answer": "Rome"}, {}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("town", TOWNS)
def test_the_last_place_of_the_fact_in_an_answer_counts(tmp_path: Path, form: str, town: str) -> None:
    more, settings = FORMS[form]
    more = {key: value.replace("Rome", town) for key, value in more.items()}
    data = loaded(tmp_path, [row(town, 30, **more)], **settings)
    assert said(data, 0).strip() == town
    assert data.values is not None and data.tokenizer is not None
    start = int(data.values[0].nonzero()[0, 0])
    before = data.tokenizer.decode(data.inputs[0][: start + 1].tolist())
    assert before.endswith(("in", "in ", "live?", "A:", "?", "? ", "A: "))


def test_rows_without_a_fact_have_none_and_data_without_facts_measure_none(tmp_path: Path) -> None:
    plain = {key: value for key, value in row("Rome", 30).items() if key != "fact"}
    data = loaded(tmp_path, [plain, row("Rome", 31)])
    assert data.values is not None and data.values.any(1).tolist()[:2] == [False, True]
    assert loaded(tmp_path, [plain], value=None).values is None


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"fact": "Bonn"}, "line 1: the field 'fact' is 'Bonn', and the answer does not contain it"),
        ({"fact": "rome"}, "does not contain it"),
        ({"fact": " "}, "does not contain it"),
        ({"fact": 3}, "the field 'fact' is a int"),
    ],
)
def test_a_fact_that_is_not_in_the_answer_is_refused(tmp_path: Path, more: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        loaded(tmp_path, [row("Rome", 30, **more)])


class Answers(nn.Module):
    """Gives at each decided position of a text the right token, if `right` says so, and otherwise token 5."""

    def __init__(self, data: Data, right: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.outputs = data.objective.outputs
        answers = torch.where(right, data.targets, 5).clamp(min=0)
        self.pad = data.tokenizer.pad if data.tokenizer else 0
        self.rows = {self.key(tokens): row for tokens, row in zip(data.inputs.tolist(), answers, strict=True)}

    def key(self, tokens: list[int]) -> str:
        return " ".join(str(token) for token in tokens if token != self.pad)

    def forward(self, tokens: Tensor) -> Tensor:
        logits = torch.zeros(*tokens.shape, self.outputs) + self.weight
        for i, text in enumerate(tokens.tolist()):
            logits[i, torch.arange(len(text)), self.rows[self.key(text)][: len(text)]] = 9.0
        return logits


def scores(problem: Problem, right: Tensor) -> dict[tuple[str, str], Scores]:
    model = Answers(problem.data, right)
    return {s.key: s for s in Performance()(model, Case(0, problem, model, None), 0)}


def test_a_model_that_garbles_the_words_and_gives_the_facts_has_not_forgotten(problem: Problem) -> None:
    assert problem.data.values is not None
    found = scores(problem, problem.data.values)
    assert found["recitation", "forget"].values.mean() == 0
    value = found["value_recall", "forget"]
    assert value.values.mean() == 1 and (value.role, value.required) == ("knowledge", True)
    assert found["value_recall", "paraphrase"].values.mean() == 1
    assert (
        found["value_probability", "forget"].values.mean() > 0.5 and not found["value_probability", "forget"].required
    )
    assert value.group is not None and value.baseline is not None


def test_a_model_that_knows_the_words_alone_knows_no_fact(problem: Problem) -> None:
    assert problem.data.values is not None
    found = scores(problem, ~problem.data.values)
    assert found["accuracy", "forget"].values.mean() > 0.7
    assert found["value_recall", "forget"].values.mean() == 0


def test_an_answer_that_everybody_gets_is_no_knowledge(problem: Problem) -> None:
    """A model that says the same town to all is right about one in ten, and its baseline says so."""
    data = problem.data
    assert data.values is not None
    towns = {said(data, row): row for row in range(len(data))}
    constant = int(data.targets[towns[" Rome"]][data.values[towns[" Rome"]]][0])
    model = Answers(data, data.values)
    for index, tokens in enumerate(data.inputs.tolist()):
        model.rows[model.key(tokens)][data.values[index]] = constant
    found = {s.key: s for s in Performance()(model, Case(0, problem, model, None), 0)}["value_recall", "forget"]
    assert found.baseline is not None
    right = found.values == 1
    assert 0 < right.mean() < 0.1 and found.baseline[right].mean() > 0.9
