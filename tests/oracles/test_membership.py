"""Membership inference against distributions whose best attack is known, and against models that memorised."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from expunge.audits.membership import ATTACKS, Membership, crossfitted
from expunge.base.errors import SpecError
from expunge.core.case import Case
from expunge.core.data import IGNORE, Data
from expunge.core.problem import Problem
from expunge.evidence.quantity import Quantity
from expunge.evidence.scores import Scores
from expunge.evidence.verdict import judge_method
from expunge.models.gpt import GPT

N = 4000
NAMES = sorted(ATTACKS)


def losses(gap: float, seed: int = 0, n: int = N) -> tuple[np.ndarray, np.ndarray]:
    """Members and others: Gaussians of unit variance; a loss is not negative, hence the offset."""
    generator = np.random.default_rng(seed)
    return generator.normal(5.0, 1.0, n), generator.normal(5.0 + gap, 1.0, n)


def balanced(attack: str, gap: float, seed: int = 0, n: int = N) -> float:
    members, others = losses(gap, seed, n)
    ids = np.arange(n)
    hits, false = crossfitted(ATTACKS[attack], members, others, 5, ids, ids)
    return float(((hits > 0.5).mean() + (false < 0.5).mean()) / 2)


@pytest.mark.parametrize("gap", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("attack", ["loss", "regression"])
def test_two_gaussians_are_told_apart_as_well_as_possible(attack: str, gap: float) -> None:
    # The best threshold lies half-way and is right in Phi(gap / 2); four standard errors of 2 N draws, and the flat top
    # of the gain curve lets a fitted threshold lose up to about as much again.
    best = stats.norm.cdf(gap / 2)
    error = math.sqrt(best * (1 - best) / (2 * N))
    assert best - 8 * error < balanced(attack, gap) < best + 4 * error


def test_the_support_vector_machine_sees_the_gap_too() -> None:
    # Losses of one and two nats, as far apart as two standard deviations; its kernel is too wide for the smallest
    # probabilities. Fewer of them, since its cost grows faster than their number.
    generator, ids = np.random.default_rng(0), np.arange(800)
    members, others = generator.normal(1.0, 0.5, 800), generator.normal(2.0, 0.5, 800)
    hits, false = crossfitted(ATTACKS["confidence"], members, others, 5, ids, ids)
    best = stats.norm.cdf(1.0)
    assert best - 0.04 < (hits.mean() + 1 - false.mean()) / 2 < best + 4 * math.sqrt(best * (1 - best) / 1600)


def test_regression_gives_the_posterior_and_its_known_auc() -> None:
    members, others = losses(1.0)
    say = ATTACKS["regression"](members, others)
    asked = np.linspace(3.0, 8.0, 11)
    # Equal variances and shares: log odds are gap * (midpoint - loss), slightly flattened by the penalty.
    assert say(asked) == pytest.approx(stats.logistic.cdf(5.5 - asked), abs=0.03)
    fresh_members, fresh_others = losses(1.0, seed=1)
    auc = stats.mannwhitneyu(say(fresh_members), say(fresh_others)).statistic / N**2
    assert auc == pytest.approx(stats.norm.cdf(1 / math.sqrt(2)), abs=4 * math.sqrt(1 / (6 * N)))


@pytest.mark.parametrize("attack", NAMES)
def test_no_better_than_guessing_where_the_distributions_agree(attack: str) -> None:
    n = 800 if attack == "confidence" else N
    # Four standard errors of a mean of 2 n fair coins.
    assert balanced(attack, 0.0, seed=3, n=n) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(2 * n))


def test_the_threshold_by_hand() -> None:
    say = ATTACKS["loss"](np.array([0.0, 1.0, 2.0, 2.0, 9.0]), np.array([1.5, 3.0, 4.0, 5.0, 5.0]))
    assert say(np.array([-1.0, 2.0, 2.49, 2.51, 9.0])).tolist() == [1, 1, 1, 0, 0]
    nothing = ATTACKS["loss"](np.array([5.0, 6.0]), np.array([1.0, 2.0]))
    assert nothing(np.array([0.0, 1.0, 9.0])).tolist() in ([0, 0, 0], [1, 1, 1])


def test_copies_are_never_split_between_folds() -> None:
    generator = np.random.default_rng(0)
    group = generator.integers(0, 40, 200)
    asked: list[tuple[set[float], np.ndarray]] = []

    def spy(members: np.ndarray, others: np.ndarray):  # type: ignore[no-untyped-def]
        def say(values: np.ndarray) -> np.ndarray:
            asked.append((set(members) | set(others), values))
            return np.zeros(values.size)

        return say

    # Values are groups, so that a copy on both sides would be a value on both sides.
    crossfitted(spy, group.astype(float), group.astype(float) + 100, 5, group, group)
    assert len(asked) == 10 and sum(len(values) for _, values in asked) == 400
    assert all(not fitted & set(values) for fitted, values in asked)


def forget_scores(attack: str, memorised: list[Case]) -> dict[str, list[Scores]]:
    audit = Membership(attack=attack)  # type: ignore[arg-type]
    pairs = [(audit(case.original, case, 0)[0], audit(case.reference, case, 0)[0]) for case in memorised]
    return {"original": [o for o, _ in pairs], "reference": [r for _, r in pairs]}


@pytest.mark.parametrize("attack", NAMES)
def test_the_original_is_told_from_the_retrained_model(attack: str, memorised: list[Case]) -> None:
    scores = forget_scores(attack, memorised)
    assert all(entry.role == "knowledge" and entry.sign == 1 for entry in scores["original"])
    ranges = [o.values.mean() - r.values.mean() for o, r in zip(*scores.values(), strict=True)]
    # A threshold is fitted to the few examples at the border, so that its decisions scatter; a probability does not.
    assert min(ranges) > (0.02 if attack == "loss" else 0.2)
    assert max(r.values.mean() for r in scores["reference"]) < 0.1


def test_a_verdict_accuses_the_original_and_not_a_retrained_model(
    memorised: list[Case],
) -> None:
    scores = forget_scores("regression", memorised)
    for model, flags in (("original", "incomplete"), ("reference", "inconclusive")):
        quantity = Quantity.from_scores(scores["original"], scores["reference"], scores[model], required=True)
        verdict = judge_method(model, [quantity])
        assert verdict.flags == [flags]
    assert quantity.metric == "membership_regression"


def test_rates_of_members_and_others_are_described(memorised: list[Case]) -> None:
    case = memorised[0]
    forget, retain, test = Membership(attack="loss", count=300)(case.original, case, 0)
    assert (retain.split, test.split, retain.role, test.role) == ("retain", "test", "description", "description")
    assert retain.values.size == test.values.size == 300
    assert forget.ids.tolist() == case.problem.unexposed.tolist()
    assert retain.values.mean() > test.values.mean()


def text(copies: bool = False) -> Problem:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 11, (60, 9), generator=generator)
    targets = tokens[:, 1:].clone()
    targets[:, :2] = IGNORE
    groups = torch.arange(60)
    if copies:
        groups[50:59] = groups[10:19]  # unseen sequences that have copies among the retained ones
    data = Data(tokens[:, :-1], targets, torch.arange(40), torch.arange(40, 50), tuple("abcdefghijk"), groups=groups)
    return Problem(data, torch.arange(10), torch.arange(10, 40), data.test, holdout=torch.arange(50, 60))


def test_a_language_model_is_held_against_its_hold_out() -> None:
    problem = text()
    model = GPT(width=8, layers=1, heads=2)(problem.data)
    forget, retain, holdout = Membership()(model, Case(0, problem, model), 0)
    assert holdout.split == "holdout" and holdout.ids.tolist() == problem.holdout.tolist()
    assert retain.values.size == 10
    assert forget.group is not None and np.isfinite(forget.values).all()


def test_an_unseen_example_with_a_copy_that_was_trained_on_is_no_other() -> None:
    problem = text(copies=True)
    model = GPT(width=8, layers=1, heads=2)(problem.data)
    with pytest.raises(SpecError, match="1 unseen examples without a copy"):
        Membership()(model, Case(0, problem, model), 0)


def test_a_model_that_diverged_says_nothing() -> None:
    problem = text()
    model = GPT(width=8, layers=1, heads=2)(problem.data)
    with torch.no_grad():
        model.norm.weight.fill_(math.nan)
    for attack in NAMES:
        found = Membership(attack=attack)(model, Case(0, problem, model), 0)  # type: ignore[arg-type]
        assert np.isnan(found[0].values).all()


def test_one_fold_is_refused() -> None:
    with pytest.raises(SpecError, match="folds: found 1"):
        Membership(folds=1)
