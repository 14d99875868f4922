"""Scores of texts against their formulas, one token after the other, and the area under the ROC curve by its definition."""

from __future__ import annotations

import math
import zlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from _toy import classes, gpt, net, tokens
from torch.nn import functional as F

from expunge.audits.membership import Membership, by_rank
from expunge.base.errors import SpecError
from expunge.core.case import Case
from expunge.core.data import IGNORE
from expunge.core.decisions import Decisions
from expunge.train.membership_scores import compressed_size, membership_scores, min_k, min_k_plus


def by_hand(logits: torch.Tensor, targets: list[int], standardised: bool, share: float = 0.4) -> float:
    values = []
    for row, target in zip(logits.double(), targets, strict=True):
        logs = F.log_softmax(row, 0)
        own = float(logs[target])
        if standardised:
            mean = sum(math.exp(x) * x for x in logs.tolist())
            spread = math.sqrt(sum(math.exp(x) * (x - mean) ** 2 for x in logs.tolist()))
            own = (own - mean) / max(spread, 1e-3)
        values.append(own)
    lowest = sorted(values)[: max(math.floor(share * len(values)), 1)]
    return -sum(lowest) / len(lowest)


@pytest.mark.parametrize("standardised", [False, True])
def test_the_lowest_tokens_count(standardised: bool) -> None:
    logits = 2 * torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
    # Texts of five, two and one decided tokens, and one without any in between.
    decisions = Decisions(logits, targets, torch.tensor([0] * 5 + [2] * 2 + [3]))
    found = (min_k_plus if standardised else min_k)(decisions, 4)
    for row, part in ((0, slice(0, 5)), (2, slice(5, 7)), (3, slice(7, 8))):
        assert float(found[row]) == pytest.approx(by_hand(logits[part], targets[part].tolist(), standardised), rel=1e-9)
    assert found[1].isnan()


@pytest.mark.parametrize("logits", [[0.0, 0.0, 0.0], [0.0, 900.0, 0.0], [-math.inf, 0.0, 0.0]])
def test_certain_and_uniform_predictions_have_finite_scores(logits: list[float]) -> None:
    decisions = Decisions(torch.tensor([logits]), torch.tensor([1]), torch.tensor([0]))
    assert min_k_plus(decisions, 1).isfinite().all()


def test_a_text_that_was_trained_has_the_lower_score() -> None:
    problem, model = tokens(), gpt()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    batch = problem.data.batch(problem.forget)
    for _ in range(60):
        optimizer.zero_grad()
        problem.objective.losses(model, batch).mean().backward()
        optimizer.step()
    for score in ("loss", "min_k", "min_k_plus", "zlib"):
        seen, unseen = (membership_scores(model, problem, ids, score) for ids in (problem.forget, problem.test))
        assert seen.max() < unseen.min(), score


def test_the_size_is_that_of_the_compressed_answer() -> None:
    def data(targets: list[int], tokenizer: Any = None) -> Any:
        return SimpleNamespace(targets=torch.tensor([targets]), tokenizer=tokenizer)

    assert compressed_size(data([IGNORE, 97, 98, 97]), 0) == len(zlib.compress(b"aba"))
    assert compressed_size(data([7, 300]), 0) == len(zlib.compress(np.array([7, 300], np.uint32).tobytes()))
    spelled = SimpleNamespace(decode=lambda ids: "-".join(map(str, ids)))
    assert compressed_size(data([IGNORE, 7, 300], spelled), 0) == len(zlib.compress(b"7-300"))
    assert compressed_size(data([97] * 40), 0) < compressed_size(data(list(range(40, 80))), 0)


def test_a_rank_is_the_share_of_pairs() -> None:
    others = np.array([1.0, 2.0, 2.0, 5.0])
    asked = np.array([0.0, 1.0, 2.0, 3.0, 9.0])
    pairs = [np.mean([(other > value) + 0.5 * (other == value) for other in others]) for value in asked]
    assert by_rank(np.array([]), others)(asked) == pytest.approx(pairs)


@pytest.mark.parametrize("score", ["min_k", "min_k_plus", "zlib"])
def test_scores_of_texts_are_refused_elsewhere(score: Any) -> None:
    problem = classes()
    case = Case(seed=0, problem=problem, original=net(), recipe=None)
    with pytest.raises(SpecError, match=rf"score: the score '{score}' is of texts"):
        Membership(score=score)(case.original, case, 0)


def test_the_audit_names_the_score() -> None:
    problem, model = tokens(), gpt()
    case = Case(seed=0, problem=problem, original=model, recipe=None)
    names = {Membership(attack="rank", score=s)(model, case, 0)[0].metric for s in ("loss", "min_k_plus")}
    assert names == {"membership_rank", "membership_rank_min_k_plus"}
