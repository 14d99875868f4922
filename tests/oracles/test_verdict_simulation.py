"""Error rates and power of whole verdicts, on simulated runs whose truth is known.

Each example has its own difficulty, which all models share: more seeds do not average it out. Each training moves all
rates a little, and a run draws every model anew. A run has two audits of knowledge, two attacks and a utility over all
and by label.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from expunge.evidence.contrast import contrast
from expunge.evidence.quantity import Quantity
from expunge.evidence.verdict import Verdict, judge_method, judge_model, judge_without_reference

LEVEL = 0.05
RANGE = 0.5


def most(trials: int, rate: float = LEVEL) -> int:
    """More events than this happen once in a thousand times at the given rate."""
    return int(stats.binom.ppf(0.999, trials, rate))


def trained(
    generator: np.random.Generator, rates: np.ndarray, seeds: int, scatter: float, graded: bool = False
) -> list[np.ndarray]:
    """Right or wrong per seed and example, or how right; every training shifts all rates by a draw of its own."""
    shift = generator.normal(0.0, scatter, (seeds, 1))
    if graded:
        return list(rates + shift + generator.normal(0.0, 0.2, (seeds, rates.size)))
    return list((generator.random((seeds, rates.size)) < rates + shift).astype(float))


ATTACKS = ("relearn", "relearn_k5")


def run(
    seed: int,
    *,
    residual: float = 0.0,
    after: float | None = None,
    seeds: int = 5,
    n: int = 400,
    loss: float = 0.0,
    scatter: float = 0.01,
    tests: int = 1000,
) -> list[Quantity]:
    """A run whose true residual is `residual` ranges before and `after` ranges after the attacks."""
    generator = np.random.default_rng(seed)
    known = generator.beta(2, 2, n)  # what retrained models know of each example, half of it on average
    before, woken = residual * RANGE, (residual if after is None else after) * RANGE

    def audit(name: str, graded: bool) -> Quantity:
        # A shift that differs between examples: what an unlearned model knows more is not spread evenly.
        uneven = 2 * generator.beta(2, 2, n)

        def draw(rates: np.ndarray) -> list[np.ndarray]:
            return trained(generator, rates, seeds, scatter, graded)

        attacked = {attack: (draw(known), draw(known + woken * uneven)) for attack in ATTACKS}
        original, reference, unlearned = [np.ones(n)] * seeds, draw(known), draw(known + before * uneven)
        ids = [np.arange(n)]
        return Quantity(name, "forget", "knowledge", not graded, ids, original, reference, unlearned, attacked)

    skill = generator.beta(8, 2, tests)

    def draw(rates: np.ndarray) -> list[np.ndarray]:
        return trained(generator, rates, seeds, 0.002)

    ids, labels = [np.arange(tests)], [np.arange(tests) % 5]
    attacked = {attack: (draw(skill), draw(skill - loss)) for attack in ATTACKS}
    useful = Quantity(
        "test_accuracy", "test", "utility", False, ids, draw(skill), draw(skill), draw(skill - loss), attacked
    )
    by_label = replace(useful, metric="worst_label_accuracy", labels=labels)
    return [audit("forget_accuracy", graded=False), audit("probability", graded=True), useful, by_label]


def verdicts(trials: int, **truth: float) -> list[Verdict]:
    return [judge_method("simulated", run(seed, **truth)) for seed in range(trials)]  # type: ignore[arg-type]


def accused(found: list[Verdict], *flags: str) -> int:
    return sum(bool(set(flags) & set(verdict.flags)) for verdict in found)


SEEDS = [3, 6, 10, 20]
TRIALS = 40


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("side", [0.1, -0.1], ids=["upper", "lower"])
def test_false_erased_at_the_boundary_is_at_most_one_in_twenty(seeds: int, side: float) -> None:
    # The attacks find nothing, so that only the residual before them can refuse: the worst case for the rate.
    found = verdicts(TRIALS, residual=side, after=0.0, seeds=seeds, n=1000, scatter=0.005)
    assert accused(found, "erased") <= most(TRIALS)


@pytest.mark.parametrize("seeds", SEEDS)
def test_false_erased_after_an_attack_is_at_most_one_in_twenty(seeds: int) -> None:
    found = verdicts(TRIALS, residual=0.0, after=0.1, seeds=seeds, n=1000, scatter=0.005)
    assert accused(found, "erased") <= most(TRIALS)


@pytest.mark.parametrize("seeds", SEEDS)
def test_a_model_at_the_limit_of_damage_is_rarely_erased_and_rarely_damaged(seeds: int) -> None:
    found = verdicts(TRIALS, loss=0.02, seeds=seeds, n=1000, tests=4000)
    assert accused(found, "erased") <= most(TRIALS) and accused(found, "damaged") <= most(TRIALS)


@pytest.mark.parametrize("n", [40, 400])
@pytest.mark.parametrize("seeds", SEEDS)
def test_false_accusations_of_an_equal_method_are_at_most_one_in_twenty(seeds: int, n: int) -> None:
    # All four flags together.
    found = verdicts(TRIALS, seeds=seeds, n=n, scatter=0.03)
    assert accused(found, "dormant", "incomplete", "damaged", "over-forgotten") <= most(TRIALS)


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("side", [0.1, -0.1], ids=["upper", "lower"])
def test_accusations_at_the_boundary_are_at_most_one_in_twenty(seeds: int, side: float) -> None:
    found = verdicts(TRIALS, residual=side, seeds=seeds, n=400, loss=0.02)
    assert accused(found, "dormant", "incomplete", "damaged", "over-forgotten") <= most(TRIALS)


@pytest.mark.parametrize(
    ("seeds", "n", "erased", "dormant", "incomplete", "damaged"),
    [(3, 4000, 0.7, 0.9, 0.9, 0.8), (6, 1000, 0.9, 0.9, 0.9, 0.9), (20, 400, 0.9, 0.9, 0.9, 0.9)],
)
def test_power_for_clear_cases(
    seeds: int, n: int, erased: float, dormant: float, incomplete: float, damaged: float
) -> None:
    """The power is stated: in how many of 20 runs at least the truth is found."""
    facts = {"seeds": seeds, "n": n, "scatter": 0.005}
    assert accused(verdicts(20, tests=8000, **facts), "erased") >= 20 * erased
    assert accused(verdicts(20, residual=0.0, after=0.4, **facts), "dormant") >= 20 * dormant
    assert accused(verdicts(20, residual=0.4, **facts), "incomplete") >= 20 * incomplete
    assert accused(verdicts(20, loss=0.1, **facts), "damaged") >= 20 * damaged


def test_one_sided_tests_over_seeds_reject_as_often_as_stated() -> None:
    # Scatter between trainings outweighs sampling here, so the rate is not only bounded but met.
    generator, trials = np.random.default_rng(11), 2000
    rejected = [0, 0]
    for values in generator.normal(0.0, 1.0, (trials, 4, 1)):
        found = contrast(list(values), [np.zeros(1, dtype=np.int64)] * 4)
        rejected[0] += found.p_above(0.0) <= LEVEL
        rejected[1] += found.p_below(0.0) <= LEVEL
    assert all(stats.binom.ppf(0.001, trials, LEVEL) <= count <= most(trials) for count in rejected)


def single(seed: int, residual: float, references: int = 5) -> list[Quantity]:
    """One model from a run, beside references of other seeds."""
    return [
        replace(
            quantity,
            original=quantity.original[:1],
            unlearned=quantity.unlearned[:1],
            attacked={attack: (left, right[:1]) for attack, (left, right) in quantity.attacked.items()},
        )
        for quantity in run(seed, residual=residual, seeds=references, n=400)
    ]


@pytest.mark.parametrize("side", [0.1, -0.1], ids=["upper", "lower"])
def test_false_erased_of_one_model_at_the_boundary_is_at_most_one_in_twenty(side: float) -> None:
    found = [judge_model("simulated", single(seed, side)) for seed in range(150)]
    assert accused(found, "erased") <= most(150)
    assert accused(found, "incomplete", "over-forgotten") <= most(150)


def test_without_references_equal_models_are_accused_at_most_one_in_twenty_times() -> None:
    found = []
    for seed in range(150):
        generator, rates = np.random.default_rng(seed), np.full(300, 0.5)
        pair = (trained(generator, rates, 1, 0.0), trained(generator, rates, 1, 0.0))
        forget = Quantity("forget_accuracy", "forget", "knowledge", True, [np.arange(300)], [np.ones(300)], *pair,
                          {"relearn": pair}, reference_ids=[np.arange(300)])  # fmt: skip
        found.append(judge_without_reference("simulated", [forget]))
    assert accused(found, "dormant", "incomplete", "damaged", "over-forgotten", "erased") <= most(150)
