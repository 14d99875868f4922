"""Answers to choose from as texts that a model reads: made anew for each option, independent of each other, refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from torch import nn

from expunge.base.errors import SpecError
from expunge.core.choices import MultipleChoice, chosen_among, option_texts
from expunge.core.data import Data
from expunge.core.problem import Problem
from expunge.data._texts import Sets, Text
from expunge.models.gpt import GPT
from expunge.tasks.given import Given
from expunge.train.option_embeddings import option_scores

pytest.importorskip("tokenizers")
from expunge.core.tokens import train_tokenizer

OPTIONS = ("no", "not now", "yes")


@pytest.fixture(scope="module")
def data() -> Data:
    tokenizer = train_tokenizer(["yes no not now is it so? "], 300, "vocabulary")
    facts = ("forget", "paraphrases", "questions")

    def text(part: str, option: str) -> Text:
        group = option if part in facts else None
        return Text(part, f"is {part} so? ", option, group=group, value=option, options=OPTIONS)

    rows = {part: [text(part, option) for option in OPTIONS] for part in (*facts, "retain", "test", "holdout")}
    return Sets(**rows).data(tokenizer, 64)


@pytest.fixture(scope="module")
def judged(data: Data) -> tuple[nn.Module, Problem]:
    torch.manual_seed(0)
    return GPT(width=8, layers=1, heads=2)(data).eval(), Given()(data, 0, {})


KEPT = {"inputs", "targets", "train", "test", "labels", "objective", "tokenizer", "lengths"}


@pytest.mark.parametrize("name", sorted({field.name for field in fields(Data)} - KEPT))
def test_nothing_of_another_example_comes_along(data: Data, name: str) -> None:
    """Sets, groups and marks of the data are those of other examples than the options."""
    changed: dict[str, object] = {"cscore": torch.rand(len(data)), "augmentations": (lambda batch, _: batch,)}
    held = replace(data, **{name: changed[name]}) if name in changed else data
    assert getattr(held, name) is not None and len(getattr(held, name))
    texts = option_texts(held, chosen_among(held, data.train[:2]))
    assert len(texts) == 6 and not getattr(texts, name)


@pytest.mark.parametrize("options", [("no", "not"), ("no", "no no no no"), ("yes", "ÿ"), ("a b", "a", "a b c")])
def test_a_score_depends_on_the_option_alone(judged: tuple[nn.Module, Problem], options: tuple[str, ...]) -> None:
    """Beginnings of each other, longer ones beside them, letters of several bytes: padding and order change nothing."""
    model, problem = judged
    asked = [MultipleChoice("is it so? ", options, 0)]
    turned = [MultipleChoice("is it so? ", options[::-1], 0)]
    scores = option_scores(model, problem, asked)[0]
    assert torch.allclose(scores.flip(0), option_scores(model, problem, turned)[0], atol=1e-5)
    for option, score in zip(options, scores, strict=True):
        encoded = problem.data.tokenizer.encode("is it so? ", option)
        ids, first = torch.tensor(encoded.ids), encoded.first
        with torch.no_grad():
            chances = model(ids[None, :-1]).double().log_softmax(-1)[0]
        wanted = chances[range(first - 1, len(ids) - 1), ids[first:]].sum()
        assert float(score) == pytest.approx(float(wanted), abs=1e-4)


def test_what_stands_before_is_read(judged: tuple[nn.Module, Problem]) -> None:
    model, problem = judged
    asked, fronts = chosen_among(problem.data, problem.retain[:2]), ["yes yes ", "no "]
    plain, shown = option_scores(model, problem, asked), option_scores(model, problem, asked, fronts)
    moved = [question._replace(prompt=front + question.prompt) for question, front in zip(asked, fronts, strict=True)]
    assert torch.equal(shown, option_scores(model, problem, moved)) and not torch.allclose(plain, shown)


@pytest.mark.parametrize(
    ("call", "finding"),
    [
        (lambda data: option_texts(data, []), "no question"),
        (lambda data: option_texts(replace(data, tokenizer=None), chosen_among(data, data.train[:1])), "tokenizer"),
        (lambda data: chosen_among(replace(data, choices=None), data.train[:1]), "no options"),
        (lambda data: chosen_among(replace(data, choices=(None, *data.choices[1:])), data.train), "example 0 has no"),
        (lambda data: chosen_among(replace(data, choices=(_wide(), *data.choices[1:])), data.train), r"\[2, 3\] options"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused(data: Data, call: Callable[[Data], object], finding: str) -> None:
    with pytest.raises(SpecError, match=finding):
        call(data)


def _wide() -> MultipleChoice:
    return MultipleChoice("is it so? ", OPTIONS[:2], 0)
