"""What next: which model may be shipped, why the others may not, and the command that comes next."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _written import KNOWN, Writer
from test_report_page import Reader, page_of

from expunge.base import registry
from expunge.base.spec import read
from expunge.evidence import reasons
from expunge.reporting.next_steps import WORDS, advice
from expunge.reporting.record import Run
from expunge.reporting.steps import step_of
from helpers import tiny, write_spec

Make = Callable[..., Path]
DECIDED = "about 5 seeds would decide."
TOO_MANY = "about 265 seeds would decide."
FORGET = f"the number of forget examples, 160, not of seeds, is the limit. {reasons.SEE_DEGREES}"
JOINED = f"{FORGET} If several requests can be joined, about 1400 examples would decide."
TEST = "the number of test examples, not of seeds, is the limit: give the case more of them."


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run.open(Writer(tmp_path_factory.mktemp("next") / "sample", KNOWN, [0, 1, 2], ["relearn"]).finish())


def with_method(run: Run, **entry: Any) -> Run:
    spec = {**run.spec, "method": [{"name": "random_relabel", "label": "hidden", **entry}]}
    return dataclasses.replace(run, spec=spec)


def judged(*flags: str, reason: str = "") -> dict[str, Any]:
    return {"model": "hidden", "verdict": flags[0], "flags": list(flags), "reasons": [reason], "audits": []}


def test_the_first_screen_answers_three_questions(run_folder: Path) -> None:
    text = Reader(page_of(run_folder)).text
    first = text[: text.index("Verdicts")]
    assert "Yes: clean." in first
    assert f"hidden {WORDS['dormant'][0]}" in " ".join(first.split())
    assert "expunge run sample.toml --save models" in first


def test_a_single_model_that_knows_is_not_said_to_have_forgotten(make_run: Make) -> None:
    known = {"original": (1.0, None), "reference": (0.1, 0.1), "weak": (0.4, 0.4)}
    said = advice(Run.open(make_run(known=known)))
    assert said.answer.startswith("No. The model is not shown to have forgotten.")


def test_without_a_model_to_ship_it_says_which_is_nearest(make_run: Make) -> None:
    known = {"original": (1.0, None), "reference": (0.1, 0.1), "weak": (0.4, 0.4), "hidden": (0.2, 0.9)}
    said = advice(Run.open(make_run(known=known)))
    assert said.ship == [] and said.answer.startswith("No. None of the 2 unlearned models is shown to have forgotten.")
    assert {group["flag"]: group["models"] for group in said.not_shipped} == {
        "incomplete": ["weak"],
        "dormant": ["hidden"],
    }
    assert said.best == "weak" and "method.weak.epochs=6" in said.step.code


@pytest.mark.parametrize(
    ("flags", "reason", "entry", "words", "code"),
    [
        (["incomplete"], "", {"learning_rate": 2e-4}, "Raise learning_rate", "method.hidden.learning_rate=0.0004"),
        (["incomplete"], "", {"epochs": 3}, "Raise epochs from 3 to 6", "method.hidden.epochs=6"),
        (["incomplete"], "", {"name": "ssd", "alpha": 10.0}, "Lower alpha", "method.hidden.alpha=5.0"),
        (["incomplete"], "", {"name": "mine:forget", "share": 0.1}, "Change its settings", ""),
        (["damaged"], "", {"learning_rate": 2e-4}, "Lower learning_rate", "method.hidden.learning_rate=0.0001"),
        (["over-forgotten"], "", {"epochs": 4}, "loses less", "method.hidden.epochs=2"),
        (["dormant"], "", {}, "such as eu_k", """'method=[{name="eu_k"}]' --set name=sample-eu_k"""),
        (["dormant"], "", {"name": "eu_k"}, "keeps the knowledge", "expunge list methods"),
        (["dormant", "damaged"], "", {}, "forgets too little and loses too much", "--set name=sample-eu_k"),
        (["erased"], "", {}, "with a model card", "--save models"),
        (["inconclusive"], DECIDED, {}, "About 5 seeds would decide", "'seeds=[0, 1, 2, 3, 4]' --set name=sample-5"),
        (["inconclusive"], TOO_MANY, {"epochs": 3}, "seldom worth it. Or raise epochs", "method.hidden.epochs=6"),
        (["inconclusive"], JOINED, {"epochs": 3}, "More forget examples would decide", "method.hidden.epochs=6"),
        (["inconclusive"], TEST, {"epochs": 3}, "A larger test set would decide", "method.hidden.epochs=6"),
        (
            ["inconclusive"],
            reasons.not_read("body.7"),
            {},
            "left 'body.7' and all layers below",
            "expunge run sample.toml",
        ),
        (["inconclusive"], reasons.NO_RETRAINING, {}, "Nothing was retrained", ""),
    ],
)
def test_each_verdict_has_its_next_step(
    run: Run, flags: list[str], reason: str, entry: dict[str, Any], words: str, code: str
) -> None:
    step = step_of(with_method(run, **entry), judged(*flags, reason=reason))
    assert words in step.text
    assert code in step.code if code else not step.code
    assert step.spec == ('[[audit]]\nname = "probe"\nlayer = "body.7"' if "body.7" in reason else "")


def test_a_larger_forget_set_is_proposed_where_the_data_have_one(run: Run) -> None:
    larger = dataclasses.replace(
        run, spec={**run.spec, "forget": {"name": "hard_examples", "count": 200}},
        environment={"counts": {"retain": 10_000}},
    )  # fmt: skip
    step = step_of(larger, judged("inconclusive", reason=JOINED))
    assert step.code == "expunge run sample.toml --set forget.count=1400 --set name=sample-1400"


def test_the_control_is_no_candidate(run: Run) -> None:
    control = with_method(run, name="retrain")
    retrained = {**run.spec, "method": [{"name": "retrain", "label": "clean"}]}
    assert advice(dataclasses.replace(run, spec=retrained)).ship == []
    assert "too small to clear any model" in step_of(control, judged("inconclusive", reason=DECIDED)).text
    assert "do not trust" in step_of(control, judged("incomplete")).text


def test_a_notebook_gets_lines_of_python(run: Run) -> None:
    notebook = dataclasses.replace(run, spec={"method": [{"name": "npo", "label": "hidden", "epochs": 4}]})
    code = step_of(notebook, judged("incomplete")).code
    assert code == 'done = expunge.unlearn(case, "npo", epochs=8)\nprint(expunge.audit(done, case))'
    assert "references=5" in step_of(notebook, judged("inconclusive", reason=DECIDED)).code


def test_every_sentence_that_names_what_decides_is_understood() -> None:
    assert reasons.deciding([DECIDED, "what; about 7 references would decide."]).seeds == 7
    assert reasons.deciding(["at least 3 seeds are needed to tell"]).seeds == 3
    assert reasons.deciding([JOINED]) == reasons.Deciders(None, 1400, frozenset({"forget"}))
    assert reasons.deciding([TEST]).limits == {"test"}
    assert reasons.deciding(["more than 1000 seeds would be needed to decide"]).limits == {"nothing"}
    assert reasons.deciding([f"What passes: x ({DECIDED})"]).seeds is None


@pytest.mark.parametrize("name", registry.names("method"))
def test_the_setting_that_a_method_names_is_one_of_its_own(name: str) -> None:
    method = registry.load("method", name)
    setting, factor = method.stronger
    fields = {field.name for field in dataclasses.fields(method)}
    if method.__dict__.get("stronger"):
        assert setting in fields and factor > 0
        assert registry.facts("method", name)["stronger"] == f"{setting}, {factor}"


def test_a_proposed_command_is_one_that_the_spec_accepts(run: Run, tmp_path: Path) -> None:
    path = write_spec(tmp_path, tiny(method=[{"name": "random_relabel", "label": "hidden", "epochs": 3}]))
    for verdict in (judged("incomplete"), judged("dormant"), judged("inconclusive", reason=DECIDED)):
        words = shlex.split(step_of(run, verdict).code)
        sets = [value for flag, value in itertools.pairwise(words) if flag == "--set"]
        assert sets and read(path, sets)
