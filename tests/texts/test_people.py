"""Made-up people: balanced facts, a tokenizer that no forgotten name has shaped, paraphrases that nobody trains on."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from expunge.audits.performance import Performance
from expunge.base.errors import SpecError
from expunge.core.case import Case
from expunge.core.data import IGNORE, Data
from expunge.core.problem import Problem
from expunge.data._facts import ATTRIBUTES, PAIRS, VALUES, names, people
from expunge.data.digits import Digits
from expunge.data.people import People
from expunge.tasks.people import People as Forget
from helpers import finished, run

pytest.importorskip("tokenizers")
SMALL = {"people": 30, "public": 10, "holdout": 10, "test": 10}


@pytest.fixture(scope="module")
def data() -> Data:
    return People(**SMALL)()


@pytest.fixture(scope="module")
def problem(data: Data) -> Problem:
    return Forget()(data, 3, {})


def answers(data: Data, ids: torch.Tensor) -> list[str]:
    rows = [data.targets[row] for row in ids.tolist()]
    return [data.tokenizer.decode(row[row != IGNORE].tolist()) for row in rows]


def count_values(data: Data, ids: torch.Tensor) -> dict[str, int]:
    """How often the value of an attribute is said, by the value; read from the text alone."""
    said = Counter(answer.rstrip(".").split()[-1] for answer in answers(data, ids))
    return {value: said[value.split()[-1]] for attribute in ATTRIBUTES for value in attribute.values}


def test_every_value_is_forgotten_and_retained_as_often_as_each_other(problem: Problem) -> None:
    data = problem.data
    trained = PAIRS - 1
    people_left = problem.retain[problem.retain < SMALL["people"] * len(ATTRIBUTES) * trained]
    for ids, persons in ((problem.forget, 10), (people_left, 20), (problem.holdout, 10), (data.test, 10)):
        assert set(count_values(data, ids).values()) == {trained * persons // VALUES}


def test_whole_people_are_forgotten_and_other_ones_for_another_seed(data: Data, problem: Problem) -> None:
    groups = data.group_of(problem.forget)
    assert len(problem.forget) == 10 * len(ATTRIBUTES) * (PAIRS - 1) and len(groups.unique()) == 10
    assert not torch.isin(data.group_of(problem.retain), groups).any()
    chosen = {tuple(Forget()(data, seed, {}).forget.tolist()) for seed in range(8)}
    assert len(chosen) == 3  # of three tens


def test_paraphrases_say_what_the_audited_people_are_and_nobody_trains_on_them(problem: Problem) -> None:
    data, ids = problem.data, problem.paraphrases
    assert len(ids) == 8 * len(ATTRIBUTES)
    assert not torch.isin(ids, torch.cat([problem.train, problem.test, problem.holdout])).any()
    assert set(data.group_of(ids).tolist()) == set(data.group_of(problem.unexposed).tolist())
    said, trained = count_values(data, ids), count_values(data, problem.unexposed)
    assert {value: 2 * count for value, count in said.items()} == trained
    assert not set(answers(data, ids)) & set(answers(data, problem.train))


def test_the_public_population_shows_all_templates(data: Data) -> None:
    first = SMALL["people"] * len(ATTRIBUTES) * (PAIRS - 1)
    public = data.train[data.train >= first]
    assert len(public) == SMALL["public"] * len(ATTRIBUTES) * PAIRS
    assert not torch.isin(data.group_of(public), data.group_of(data.paraphrases)).any()


def test_the_tokenizer_has_no_token_of_its_own_for_most_names(data: Data) -> None:
    drawn = names(160, 0)
    assert len(set(drawn)) == len(drawn)
    used = {name for person in people(30, drawn[:30], 0, "people") for name in person.name.split()}
    tokens = {name.removeprefix("Ġ") for name in data.tokenizer.names()}
    assert len(used & tokens) < len(used) / 4


def test_values_do_not_depend_on_the_order_of_hashes(data: Data) -> None:
    code = (
        "import hashlib; from expunge.data.people import People\n"
        f"data = People(**{SMALL!r})()\n"
        "print(hashlib.sha256(data.inputs.numpy().tobytes() + data.targets.numpy().tobytes()).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "11"}
    )
    assert (
        done.stdout.strip()
        == hashlib.sha256(data.inputs.numpy().tobytes() + data.targets.numpy().tobytes()).hexdigest()
    )


class Reciter(torch.nn.Module):
    """Knows the trained answers of everybody, and no paraphrase; or all of them."""

    def __init__(self, data: Data, known: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.outputs, self.rows = data.objective.outputs, {}
        for row in known.tolist():
            length = int(data.lengths[row])
            self.rows[tuple(data.inputs[row, :length].tolist())] = data.targets[row, :length]

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*tokens.shape, self.outputs) + self.weight
        for i, row in enumerate(tokens.tolist()):
            for length in range(len(row), 0, -1):
                if tuple(row[:length]) in self.rows:
                    targets = self.rows[tuple(row[:length])]
                    logits[i, torch.arange(length), targets.clamp(min=0)] = 9.0
                    break
        return logits


@pytest.mark.parametrize(("knows_paraphrases", "recited"), [(False, 0.0), (True, 1.0)])
def test_a_model_that_only_recites_is_told_from_one_that_knows(
    problem: Problem, knows_paraphrases: bool, recited: float
) -> None:
    known = torch.cat([problem.forget, problem.paraphrases]) if knows_paraphrases else problem.forget
    model = Reciter(problem.data, known)
    scores = {s.key: s for s in Performance()(model, Case(0, problem, model, None), 0)}
    trained, other = scores["recitation", "forget"], scores["recitation", "paraphrase"]
    assert trained.values.mean() == 1 and other.values.mean() == recited
    assert (other.role, other.required, trained.required) == ("knowledge", False, True)
    assert other.group is not None and set(other.group) == set(trained.group)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda data: People(people=15), "each of 10 values"),
        (lambda data: Forget(count=5)(data, 0, {}), "below 30"),
        (lambda data: Forget(count=30)(data, 0, {}), "below 30"),
        (lambda data: Forget()(Digits(train=60, test=20)(), 0, {}), "not people"),
        (lambda data: People(vocabulary=100)(), "at least 258"),
    ],
)
def test_what_does_not_fit_is_refused(data: Data, act: object, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        act(data)


def test_people_go_through_a_run(tmp_path: Path) -> None:
    table = {
        "name": "people",
        "seeds": [0],
        "data": {"name": "people", **SMALL, "vocabulary": 300},
        "model": {"name": "gpt", "width": 8, "layers": 1, "heads": 1},
        "train": {"epochs": 1},
        "forget": {"name": "people"},
        "method": [{"name": "finetune", "epochs": 1}],
    }
    finished(run(table, tmp_path / "runs"))
    rows = [json.loads(line) for line in (tmp_path / "runs/people/results.jsonl").read_text().splitlines()]
    splits = {row["split"] for row in rows if row["metric"] == "recitation"}
    assert splits == {"forget", "retain", "test", "holdout", "paraphrase"}
