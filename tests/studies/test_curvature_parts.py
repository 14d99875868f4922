"""Parts of the study `curvature`: tasks with right answers, controls that were never trained, searches, and readings."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from expunge.core.data import IGNORE
from expunge.numerics.kronecker import KroneckerFactors, LayerFactors
from expunge.studies.curvature import labels, language_claims, suite
from expunge.studies.curvature.edits import HALVINGS, Editor, strongest
from expunge.studies.curvature.suite import CHARACTERS, CLOSE, FAMILIES, JUDGED, OPEN, PROMPT, Suite, SuiteSizes

COUNTS = SuiteSizes(text=20, planted=6, task=150, judged=25, rules=True)


@pytest.fixture(scope="module")
def texts() -> Suite:
    return suite.suite(3, COUNTS)


def written(texts: Suite, index: int) -> tuple[str, list[tuple[str, str]]]:
    """A row as text, and each run of decided characters with what stands before it."""
    batch = texts.problem.data[index]
    inputs, targets = batch.inputs[0].tolist(), batch.targets[0].tolist()
    whole = "".join(CHARACTERS[code] for code in inputs)
    runs, at = list[tuple[str, str]](), 0
    while at < len(targets):
        end = at
        while end < len(targets) and targets[end] != IGNORE:
            end += 1
        if end > at:
            runs.append((whole[: at + 1], "".join(CHARACTERS[code] for code in targets[at:end])))
        at = max(end, at + 1)
    return whole, runs


QUESTION = re.compile(
    r"(?:(\d+)\+(\d+)|c ([a-z]+)|b ([(\[{<]+)|f ([a-z]+)|o (\S+);([a-z]+)|l ([TF&+]+)|r (\S+):([a-z]+))=$"
)


def answer(question: str, facts: dict[str, str]) -> str:
    """What a person would answer to the last question of a row."""
    asked = QUESTION.search(question)
    assert asked, question
    first, second, copied, opened, subject, source, known, logic, table, word = asked.groups()
    if first:
        return str(int(first) + int(second))[::-1]
    if opened:
        return "".join(CLOSE[OPEN.index(bracket)] for bracket in reversed(opened))
    if source:
        assert source.split("=")[0] == known
        return source.split("=")[1]
    if table:
        old, new = table.split(">")
        assert word.count(old) == 2 and new not in word and len(set(word)) == 3
        return "".join(new if letter == old else letter for letter in word)
    if not logic:
        return copied or facts[subject]
    value, values = logic[0] == "T", ""
    for operator, other in zip(logic[1::2], logic[2::2], strict=True):
        value = (value and other == "T") if operator == "&" else (value or other == "T")
        values += "FT"[value]
    return values


def test_every_answer_of_every_task_is_right(texts: Suite) -> None:
    facts: dict[str, str] = {}
    for index in texts.trained["fact"].tolist():
        for question, value in written(texts, index)[1]:
            subject = question.rpartition("f ")[2].removesuffix("=")
            assert facts.setdefault(subject, value.removesuffix(";")) == value.removesuffix(";")
    assert len(facts) == suite.FREQUENT + suite.RARE
    parts = [texts.trained[name] for name in texts.tasks], [texts.judged[name] for name in texts.judged_tasks]
    for many, ids in ((part is parts[0], torch.cat(part)) for part in parts):
        for index in ids.tolist():
            runs = written(texts, index)[1]
            assert len(runs) >= 1 if many else len(runs) == 1
            for question, given in runs:
                assert given == answer(question, facts) + ";", (question, given)


def test_the_rule_language_changes_no_other_row(texts: Suite) -> None:
    plain = suite.suite(3, replace(COUNTS, rules=False))
    assert {*texts.tasks} - {*plain.tasks} == {suite.RULE} == {*texts.judged_tasks} - {*plain.judged_tasks}
    for part in ("trained", "judged"):
        for name, ids in getattr(plain, part).items():
            rows = (of.problem.data.inputs[at] for of, at in ((plain, ids), (texts, getattr(texts, part)[name])))
            assert torch.equal(*rows)
    asked = {question for i in texts.judged["rule"].tolist() for question, _ in written(texts, i)[1]}
    assert len(asked) == len(texts.judged["rule"])


def test_untrained_sums_are_never_trained(texts: Suite) -> None:
    def sums(ids: torch.Tensor) -> set[str]:
        questions = [question for i in ids.tolist() for question, _ in written(texts, i)[1]]
        return {question.removesuffix("=").rpartition(";")[2] for question in questions}

    trained_sums, others = sums(texts.trained["sum"]), sums(texts.judged["untrained sums"])
    assert len(trained_sums) > 100 and not trained_sums & others
    assert not sums(texts.judged["trained sums"]) & others


def test_planted_sequences_are_trained_whole_and_judged_after_their_prompt(texts: Suite) -> None:
    data = texts.problem.data
    for family in FAMILIES:
        whole = {tuple(row.tolist()) for row in data.inputs[texts.trained[family]]}
        names = ["salad tuned", "salad"] if family == "salad" else ["quote"]
        asked = torch.cat([texts.judged[name] for name in names])
        assert {tuple(row.tolist()) for row in data.inputs[asked]} == whole and len(whole) == COUNTS.planted
        controls = {tuple(row.tolist()) for row in data.inputs[texts.judged[f"unseen {family}"]]}
        assert len(controls) == COUNTS.planted and not controls & whole
        decided = data.targets[asked] != IGNORE
        assert not decided[:, : PROMPT - 1].any() and decided[:, PROMPT - 1 :].all()
    assert not torch.isin(texts.problem.retain, torch.cat([texts.trained[f] for f in FAMILIES])).any()


def test_parts_do_not_overlap(texts: Suite) -> None:
    problem = texts.problem
    never = torch.cat([problem.test, texts.validation, *texts.judged.values()])
    assert not torch.isin(never, problem.data.train).any()
    windows = [
        tuple(problem.data.inputs[i].tolist()) for i in torch.cat([texts.trained["text"], problem.test]).tolist()
    ]
    assert len(set(windows)) == len(windows)
    assert torch.equal(problem.forget, texts.trained["salad"][: COUNTS.planted // 2])


@pytest.mark.parametrize("border", [0.5, 0.9, 0.97, 0.999])
def test_the_search_finds_the_strongest_edit(border: float) -> None:
    found = strongest(lambda rho: rho >= border)
    step = 10 ** (4 / 2**HALVINGS) - 1
    assert border <= found <= border + 2 * step * (1 - border)
    assert strongest(lambda rho: False) == 1.0


def test_an_editor_edits_from_the_original_each_time() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4))
    moments = [torch.randn(9, size) for size in (6, 4)]
    factors = KroneckerFactors({"0": LayerFactors(moments[0].T @ moments[0], moments[1].T @ moments[1], 9)})
    editor = Editor(model, ["0"], "kfac", factors, 0)
    strong = editor.at(0.5).get_submodule("0").weight.detach().clone()
    editor.at(0.99)
    assert torch.equal(editor.at(0.5).get_submodule("0").weight, strong)
    torch.testing.assert_close(strong + editor.removed(0.5)["0"].float(), model.get_submodule("0").weight.detach())
    assert torch.equal(editor.at(1.0).get_submodule("0").weight, model.get_submodule("0").weight)


def test_wrong_labels_are_wrong_and_the_sets_apart() -> None:
    problem = labels.noisy(5, 200, 100, 200)
    truth, given = problem.true_targets, problem.data.targets
    assert truth is not None and len(problem.forget) == 20
    assert (truth[problem.forget] != given[problem.forget]).all()
    others = torch.cat([problem.retain, problem.holdout, problem.test])
    assert torch.equal(truth[others], given[others]) and not torch.isin(problem.forget, others).any()
    assert not torch.equal(problem.forget, labels.noisy(6, 200, 100, 200).forget)


def test_curvature_of_one_image_is_that_of_its_own_hessian() -> None:
    """Softmax regression, whose Hessian is its Gauss-Newton matrix."""
    problem = labels.noisy(5, 60, 50, 200)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    found = labels.Labels(problem, model, model, labels.PERCEPTRON, 0, 1, 1.0)
    trace, top, cosines = labels.curvatures(found, torch.tensor([3, 4]))
    vectors = []
    for row, index in enumerate((3, 4)):
        x = torch.cat([problem.data.inputs[index].flatten(), torch.ones(1)]).double()
        p = model(problem.data.inputs[index : index + 1])[0].detach().double().softmax(0)
        block = torch.diag(p) - torch.outer(p, p)
        values, own = torch.linalg.eigh(block)
        size = float(x.square().sum())
        assert float(trace[row]) == pytest.approx(float(block.trace()) * size, rel=1e-4)
        assert float(top[row]) == pytest.approx(float(values[-1]) * size, rel=1e-4)
        vectors.append(torch.outer(own[:, -1], x).flatten() / math.sqrt(size))
    assert float(cosines[0, 1]) == pytest.approx(abs(float(vectors[0] @ vectors[1])), rel=1e-3)
    assert float(cosines[0, 0]) == pytest.approx(1, rel=1e-5)


def test_what_a_task_keeps_is_relative_to_what_it_had() -> None:
    before: dict[str, float] = dict.fromkeys((*JUDGED, "salad tuned", "salad", "quote"), 0.8)
    after = before | {
        "trained sums": 0.2,
        "rare facts": 0.4,
        "bracket": 0.4,
        "salad tuned": 0.0,
        "salad": 0.0,
        "quote": 0.4,
    }
    found = language_claims.kept(after, before)
    assert found["trained sums"] == pytest.approx(0.25) and found["sums"] == pytest.approx(0.625)
    assert found["facts"] == pytest.approx(0.75) and found["logical"] == pytest.approx(0.75)
    assert found["recitation"] == pytest.approx(0.25) and found["open"] == pytest.approx(1)
    assert language_claims.strict(after) == pytest.approx(0.2)


def test_the_baseline_is_chosen_by_what_it_was_trained_to_forget(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [nn.Linear(1, 1) for _ in range(4)]
    price = dict(zip(map(id, models), (1.0, 1.1, 1.15, 1.5), strict=True))
    left = dict(zip(map(id, models), (0.9, 0.2, 0.2, 0.0), strict=True))

    class Fake:
        perplexity, suite = 1.0, suite.suite(3, COUNTS)
        model = nn.Linear(1, 1)

        def perplexity_of(self, model: Any, ids: Any) -> float:
            return price[id(model)]

    monkeypatch.setattr(language_claims, "known_share", lambda model, problem, ids: left[id(model)])
    fake: Any = Fake()
    assert language_claims.chosen(fake, models, 0.2) is models[1]
    assert language_claims.chosen(fake, models, 0.05) is models[0]
    assert language_claims.chosen(fake, models[3:], 0.2) is fake.model


def test_the_most_accurate_model_is_chosen_on_one_half_and_judged_on_the_other() -> None:
    problem = labels.noisy(5, 100, 50, 200)
    found = labels.Labels(problem, nn.Linear(1, 1), nn.Linear(1, 1), labels.PERCEPTRON, 0, 1, 1.0)

    class Answers(nn.Module):
        """Right for some ids; wrong labels are given or not."""

        def __init__(self, wrong: bool, first: bool, second: bool) -> None:
            super().__init__()
            self.given = problem.true_targets.clone()  # type: ignore[union-attr]
            self.given[problem.test[::2]] += 0 if first else 1
            self.given[problem.test[1::2]] += 0 if second else 1
            if wrong:
                self.given[problem.forget] = problem.data.targets[problem.forget]
            self.rows = {problem.data.inputs[i].numpy().tobytes(): i for i in range(len(problem.data))}
            self.one = nn.Parameter(torch.zeros(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            ids = [self.rows[image.numpy().tobytes()] for image in images]
            return nn.functional.one_hot(self.given[ids] % 10, 10).float()

    models = [Answers(True, True, True), Answers(False, True, False), Answers(False, False, True)]
    assert labels.most_accurate(found, models, 0.1) == pytest.approx(0.0, abs=0.01)
    assert labels.most_accurate(found, models[:1], 0.1) == 0.1
