"""What is to be forgotten: each construction against its definition, and refusals of what cannot be forgotten."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from expunge.attacks.relearn import Relearn
from expunge.base.errors import SpecError
from expunge.core.contracts import Task
from expunge.core.data import IGNORE, Data
from expunge.core.problem import EXPOSED_SHARE, Problem
from expunge.data.digits import Digits
from expunge.data.fashion_mnist import FashionMNIST
from expunge.data.python_docs import PythonDocs
from expunge.models.mlp import MLP
from expunge.tasks.easy_examples import EasyExamples
from expunge.tasks.hard_examples import HardExamples
from expunge.tasks.indices import Indices
from expunge.tasks.label_swap import LabelSwap
from expunge.tasks.planted_text import CONSONANTS, NAME, PROMPT, VOWELS, PlantedText
from expunge.tasks.whole_class import WholeClass
from expunge.train.cscore import cscores
from expunge.train.training import TrainedRecipe, Training


@pytest.fixture(scope="module")
def digits() -> Data:
    return Digits()()


@pytest.fixture(scope="module")
def docs() -> Data:
    return PythonDocs(train=50, test=10)()


# --- The problem -----------------------------------------------------------------------------------------------------


def pool(n: int = 40, **changes: Any) -> Data:
    return replace(
        Data(torch.zeros(n, 2), torch.arange(n) % 2, torch.arange(n - 4), torch.arange(n - 4, n), ("a", "b")), **changes
    )


def test_a_fifth_of_the_forget_set_is_exposed_and_the_rest_held_out() -> None:
    problem = Problem(pool(), torch.arange(20), torch.arange(20, 36), torch.arange(36, 40))
    assert len(problem.exposed) == round(EXPOSED_SHARE * 20) == 4 and len(problem.unexposed) == 16
    assert sorted(problem.exposed.tolist() + problem.unexposed.tolist()) == list(range(20))
    assert problem.train.tolist() == list(range(36))
    # The split belongs to the ids: another problem with the same forget set exposes the same ones.
    again = Problem(pool(), torch.arange(20), torch.arange(20, 30), torch.arange(36, 40))
    assert torch.equal(problem.exposed, again.exposed)


@pytest.mark.parametrize("copies", [2, 5, 10])
def test_groups_are_never_split(copies: int) -> None:
    groups = torch.arange(40) // copies
    problem = Problem(pool(groups=groups), torch.arange(20), torch.arange(20, 36), torch.arange(36, 40))
    assert not set(groups[problem.exposed].tolist()) & set(groups[problem.unexposed].tolist())
    distinct = 20 // copies
    assert len(problem.exposed) == copies * min(max(round(0.2 * distinct), 1), distinct - 1)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_small_forget_sets_keep_something_to_score(n: int) -> None:
    problem = Problem(pool(), torch.arange(n), torch.arange(20, 36), torch.arange(36, 40))
    assert len(problem.unexposed) >= 1 and len(problem.exposed) == (0 if n == 1 else 1)


@pytest.mark.parametrize(
    ("forget", "retain", "test", "said"),
    [
        ([], [1], [2], "the forget set is empty; name at least one example"),
        ([0], [], [2], "the retain set is empty; forget fewer examples"),
        ([0], [1], [], "the test set is empty"),
        ([0, 1], [1, 2], [3], "1 ids are in both forget and retain, the first is 1"),
        ([0], [1], [0], "in both forget and test"),
        ([0], [1], [1], "in both retain and test"),
        ([0, 0], [1], [2], "id 0 occurs 2 times"),
        ([40], [1], [2], "id 40 is out of range"),
    ],
)
def test_impossible_problems_are_refused(forget: list[int], retain: list[int], test: list[int], said: str) -> None:
    ids = [torch.tensor(x, dtype=torch.int64) for x in (forget, retain, test)]
    with pytest.raises(SpecError, match=said):
        Problem(pool(), *ids)


def test_references_train_without_all_of_the_corruption() -> None:
    corrupted = torch.tensor([0, 1, 2, 3, 20, 21])
    problem = Problem(pool(), torch.arange(4), torch.arange(4, 36), torch.arange(36, 40), corrupted=corrupted)
    assert problem.reference_train.tolist() == [*range(4, 20), *range(22, 36)]
    assert problem.train.tolist() == list(range(36))


def test_the_attacker_has_whole_groups_and_no_relative_of_a_held_out_example() -> None:
    groups = torch.arange(40)
    groups[:12] = groups[:12] // 2 * 2
    problem = Problem(pool(groups=groups), torch.arange(12), torch.arange(12, 36), torch.arange(36, 40))
    groups[14] = groups[problem.unexposed[0]]  # a retained copy of a held-out example
    exposed = groups[problem.exposed].unique()
    assert len(exposed) == 1
    without, some = (Relearn(k=k).training_ids(problem).tolist() for k in (0, 1))
    assert without == [i for i in range(12, 36) if i != 14]
    assert some == without + problem.exposed.tolist()
    with pytest.raises(SpecError, match=r"attack\.k: found 2; allowed: 0 to 1"):
        Relearn(k=2).training_ids(problem)


# --- Hard examples ---------------------------------------------------------------------------------------------------


def test_hard_examples_are_those_of_lowest_cscore() -> None:
    data = FashionMNIST(train=2000, test=10)()
    task = HardExamples(count=50)
    problem = task(data, 0, task.measure(data, None, 0))  # shipped: no recipe is needed
    scores = data.cscore[:2000]
    assert len(problem.forget) == 50
    assert scores[problem.forget].max() <= scores[problem.retain].min()
    # Ties go to the smaller id, so that the set is the same everywhere.
    expected = sorted(range(2000), key=lambda i: (float(scores[i]), i))[:50]
    assert problem.forget.tolist() == expected


def test_easy_examples_are_those_of_highest_cscore() -> None:
    data = FashionMNIST(train=2000, test=10)()
    task = EasyExamples(count=50)
    problem = task(data, 0, task.measure(data, None, 0))
    scores = data.cscore[:2000]
    expected = sorted(range(2000), key=lambda i: (-float(scores[i]), i))[:50]
    assert problem.forget.tolist() == expected


def test_without_shipped_scores_they_are_computed(digits: Data) -> None:
    data = replace(digits, train=torch.arange(100, 300))
    recipe = TrainedRecipe(MLP(widths=[8]), Training(epochs=3), data)
    task = HardExamples(count=10, nets=3)
    measured = task.measure(data, recipe, 4)
    assert torch.equal(measured["cscore"], cscores(recipe, data, 3, 4))
    problem = task(data, 0, measured)
    assert problem.forget.tolist() == data.train[torch.argsort(measured["cscore"], stable=True)[:10]].tolist()


# --- Wrong labels ----------------------------------------------------------------------------------------------------


def test_swapped_labels_are_wrong_uniform_and_the_only_change(digits: Data) -> None:
    problem = LabelSwap(count=1100, discovery=0.5)(digits, 3, {})
    changed = (problem.data.targets != digits.targets).nonzero().flatten()
    assert sorted(problem.corrupted.tolist()) == changed.tolist() and len(changed) == 1100
    assert torch.isin(changed, digits.train).all()
    assert problem.true_targets is digits.targets
    shift = (problem.data.targets[changed] - digits.targets[changed]) % 10
    # Chi-square over nine wrong labels, at a level that a fixed seed meets.
    assert stats.chisquare(torch.bincount(shift, minlength=10)[1:].numpy()).pvalue > 1e-3
    assert torch.equal(problem.data.inputs, digits.inputs)


@pytest.mark.parametrize(("discovery", "known"), [(1.0, 60), (0.5, 30), (0.01, 1), (0.0, 1)])
def test_only_what_was_discovered_is_forgotten(digits: Data, discovery: float, known: int) -> None:
    problem = LabelSwap(count=60, discovery=discovery)(digits, 0, {})
    assert len(problem.forget) == known and torch.isin(problem.forget, problem.corrupted).all()
    assert torch.isin(problem.corrupted, problem.train).all() and len(problem.train) == 1200
    assert len(problem.reference_train) == 1140 and not torch.isin(problem.reference_train, problem.corrupted).any()


def test_another_discovery_rate_plants_the_same_labels(digits: Data) -> None:
    few, many = (LabelSwap(count=60, discovery=share)(digits, 0, {}) for share in (0.2, 0.8))
    assert torch.equal(few.data.targets, many.data.targets) and torch.isin(few.forget, many.forget).all()
    other = LabelSwap(count=60)(digits, 1, {})
    assert not torch.equal(few.data.targets, other.data.targets)


# --- Whole class -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [3, "3"])
def test_a_class_is_left_out_of_training_and_of_the_test_set(digits: Data, label: int | str) -> None:
    problem = WholeClass(label=label)(digits, 0, {})
    is_it = digits.targets == 3
    assert is_it[problem.forget].all() and not is_it[problem.retain].any() and not is_it[problem.test].any()
    assert is_it[problem.holdout].all()
    assert len(problem.forget) + len(problem.holdout) == 183
    assert sorted([*problem.test.tolist(), *problem.holdout.tolist()]) == digits.test.tolist()


@pytest.mark.parametrize("label", [10, "ten"])
def test_a_class_that_is_not_there_is_refused(digits: Data, label: int | str) -> None:
    with pytest.raises(SpecError, match=r"there is no class .*allowed: 0 0, 1 1"):
        WholeClass(label=label)(digits, 0, {})


def test_a_class_without_training_examples_is_refused(digits: Data) -> None:
    nobody = replace(digits, train=digits.train[digits.targets[digits.train] != 4])
    with pytest.raises(SpecError, match="the forget set is empty"):
        WholeClass(label=4)(nobody, 0, {})


# --- Planted text ----------------------------------------------------------------------------------------------------


def test_planted_secrets_are_where_they_should_be(docs: Data) -> None:
    task = PlantedText(count=5, copies=3, secret=12)
    problem = task(docs, 0, {})
    data = problem.data
    assert len(data) == 60 + 15 + 5 and len(problem.forget) == 15 and len(problem.holdout) == 5
    assert torch.equal(data.inputs[:60], docs.inputs) and torch.equal(data.targets[:60], docs.targets)
    assert problem.retain.tolist() == docs.train.tolist() and problem.test.tolist() == docs.test.tolist()
    head = len(PROMPT.format(name="x" * NAME))
    secrets = set()
    for example in [*problem.forget.tolist(), *problem.holdout.tolist()]:
        text = bytes([*data.inputs[example].tolist()]).decode()
        decided = data.targets[example] != IGNORE
        secret = bytes(data.targets[example][decided].tolist()).decode()
        secrets.add(secret)
        # The decisions are the secret's letters and nothing else; each is the byte after its position.
        assert text[head : head + 12] == secret and decided.nonzero().flatten().tolist() == list(
            range(head - 1, head + 11)
        )
        assert text.startswith("The secret of ") and text[head + 12 :].strip() == ""
        assert set(secret[::2]) <= set(CONSONANTS) and set(secret[1::2]) <= set(VOWELS)
    assert len(secrets) == 10


def test_copies_are_one_group_and_the_unseen_are_others(docs: Data) -> None:
    problem = PlantedText(count=5, copies=3)(docs, 0, {})
    groups = problem.data.group_of(problem.forget)
    assert [len(set(groups[i : i + 3].tolist())) for i in range(0, 15, 3)] == [1] * 5
    assert len(groups.unique()) == 5
    every = problem.data.group_of(torch.arange(len(problem.data)))
    assert len(every.unique()) == 60 + 5 + 5
    assert len(problem.exposed) == 3 and len(problem.unexposed) == 12


def test_groups_that_the_text_brought_stay_apart_from_planted_ones(docs: Data) -> None:
    own = replace(docs, groups=torch.arange(60) // 2 + 55)  # numbers up to 84, where planted ones would begin at 60
    problem = PlantedText(count=5, copies=3)(own, 0, {})
    every = problem.data.group_of(torch.arange(len(problem.data)))
    assert not torch.isin(every[60:], every[:60]).any()


def test_a_secret_that_does_not_fit_is_refused(docs: Data) -> None:
    room = 65 - len(PROMPT.format(name="x" * NAME))
    PlantedText(count=2, secret=room)(docs, 0, {})
    with pytest.raises(SpecError, match=rf"does not fit into 65.*allowed: 1 to {room}"):
        PlantedText(count=2, secret=room + 1)(docs, 0, {})


# --- Ids from a file -------------------------------------------------------------------------------------------------


def as_text(path: Path, ids: list[int]) -> Path:
    path.write_text("\n".join(map(str, ids)))
    return path


def as_json(path: Path, ids: list[int]) -> Path:
    path = path.with_suffix(".json")
    path.write_text(json.dumps(ids))
    return path


def as_npy(path: Path, ids: list[int]) -> Path:
    path = path.with_suffix(".npy")
    np.save(path, np.array(ids))
    return path


@pytest.mark.parametrize("write", [as_text, as_json, as_npy])
def test_ids_are_read(digits: Data, tmp_path: Path, write: Callable[[Path, list[int]], Path]) -> None:
    problem = Indices(path=str(write(tmp_path / "ids.txt", [7, 3, 99])))(digits, 0, {})
    assert problem.forget.tolist() == [7, 3, 99]
    assert problem.retain.tolist() == [i for i in range(1200) if i not in (7, 3, 99)]
    kept = write(tmp_path / "retain.txt", [1, 2])
    problem = Indices(path=str(write(tmp_path / "ids.txt", [7])), retain=str(kept))(digits, 0, {})
    assert problem.retain.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("ids.txt", "1\n2\n2", "id 2 occurs 2 times"),
        ("ids.txt", "1500", "id 1500 is no training example"),
        ("ids.txt", "1797", "id 1797 is out of range"),
        ("ids.txt", "-1", "id -1 is out of range"),
        ("ids.txt", "", "the forget set is empty"),
        ("ids.txt", "one", "allowed: whole numbers"),
        ("ids.txt", "99999999999999999999", "out of range"),
        ("ids.json", "[1, 2.5]", "more than a list of whole numbers"),
        ("ids.json", "[true]", "more than a list of whole numbers"),
        ("ids.json", '{"a": 1}', "more than a list of whole numbers"),
        ("ids.json", "[[1], [2]]", "more than a list of whole numbers"),
        ("ids.json", "[1,", "allowed: whole numbers"),
        ("ids.npy", "no array", "allowed: whole numbers"),
        ("ids.npy", "", "allowed: whole numbers"),
    ],
)
def test_bad_ids_are_refused(digits: Data, tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(SpecError, match=said):
        Indices(path=str(tmp_path / name))(digits, 0, {})


def test_forgetting_everything_is_refused(digits: Data, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="the retain set is empty"):
        Indices(path=str(as_text(tmp_path / "ids.txt", list(range(1200)))))(digits, 0, {})


def test_ids_that_are_forgotten_and_retained_are_refused(digits: Data, tmp_path: Path) -> None:
    forget, retain = as_text(tmp_path / "f.txt", [1, 2]), as_text(tmp_path / "r.txt", [2, 3])
    with pytest.raises(SpecError, match="1 ids are in both forget and retain"):
        Indices(path=str(forget), retain=str(retain))(digits, 0, {})


def test_a_file_of_ids_that_is_not_there_is_named(digits: Data, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"forget\.path: cannot read .*none\.txt"):
        Indices(path=str(tmp_path / "none.txt"))(digits, 0, {})


# --- What cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [HardExamples(count=1200), LabelSwap(count=1200), LabelSwap(count=5000)])
def test_as_many_as_there_are_is_refused(digits: Data, task: Task) -> None:
    with pytest.raises(SpecError, match="allowed: 1 to 1199"):
        task(digits, 0, {"cscore": torch.zeros(1200)})


@pytest.mark.parametrize("task", [LabelSwap(count=3), WholeClass(label=65)])
def test_tokens_have_no_classes(docs: Data, task: Task) -> None:
    with pytest.raises(SpecError, match="the objective is LanguageModelling"):
        task(docs, 0, {})


def test_images_are_no_text(digits: Data) -> None:
    with pytest.raises(SpecError, match="the data are not bytes"):
        PlantedText()(digits, 0, {})
