"""Error rates and power of verdicts, on simulated runs whose truth is known.

Each example has its own rate of being known, each training moves all rates a little, and a run draws every model anew.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from expunge.evidence.intervals import contrast
from expunge.evidence.quantity import Quantity
from expunge.evidence.verdict import Verdict, judge_method, judge_model, judge_without_reference

LEVEL = 0.05
RANGE = 0.5


def most(trials: int, rate: float = LEVEL) -> int:
    """More events than this happen once in a thousand times at the given rate."""
    return int(stats.binom.ppf(0.999, trials, rate))


def trained(generator: np.random.Generator, rates: np.ndarray, seeds: int, scatter: float) -> list[np.ndarray]:
    """Right or wrong per seed and example; every training shifts all rates by a draw of its own."""
    shift = generator.normal(0.0, scatter, (seeds, 1))
    return list((generator.random((seeds, rates.size)) < rates + shift).astype(float))


def run(
    seed: int,
    *,
    residual: float = 0.0,
    after: float | None = None,
    seeds: int = 5,
    n: int = 400,
    loss: float = 0.0,
    scatter: float = 0.01,
) -> list[Quantity]:
    """A run whose true residual is `residual` ranges before and `after` ranges after the attack."""
    generator = np.random.default_rng(seed)
    ids, known = [np.arange(n)], np.full(n, 1 - RANGE)
    left, woken = residual * RANGE, (residual if after is None else after) * RANGE
    attacked = (trained(generator, known, seeds, scatter), trained(generator, known + woken, seeds, scatter))
    forget = Quantity(
        "forget_accuracy",
        "forget",
        "knowledge",
        True,
        ids,
        [np.ones(n)] * seeds,
        trained(generator, known, seeds, scatter),
        trained(generator, known + left, seeds, scatter),
        {"relearn": attacked},
    )
    skill = np.full(1000, 0.8)
    original, reference = trained(generator, skill, seeds, 0.002), trained(generator, skill, seeds, 0.002)
    worse = trained(generator, skill - loss, seeds, 0.002)
    return [forget, Quantity("test_accuracy", "test", "utility", False, [np.arange(1000)], original, reference, worse)]


def verdicts(trials: int, **truth: float) -> list[Verdict]:
    return [judge_method("simulated", run(seed, **truth)) for seed in range(trials)]  # type: ignore[arg-type]


def accused(found: list[Verdict], *flags: str) -> int:
    return sum(bool(set(flags) & set(verdict.flags)) for verdict in found)


@pytest.mark.parametrize("side", [0.1, -0.1], ids=["upper", "lower"])
@pytest.mark.parametrize("scatter", [0.002, 0.03], ids=["calm", "noisy"])
def test_false_erased_at_the_boundary_is_at_most_one_in_twenty(side: float, scatter: float) -> None:
    # The attack finds nothing, so that only the residual before it can refuse: the worst case for the rate.
    found = verdicts(150, residual=side, after=0.0, seeds=5, n=1000, scatter=scatter)
    assert accused(found, "erased") <= most(150)


def test_false_erased_after_an_attack_is_at_most_one_in_twenty() -> None:
    found = verdicts(150, residual=0.0, after=0.1, seeds=10, n=1000)
    assert accused(found, "erased") <= most(150)


def test_false_erased_of_a_model_at_the_limit_of_damage_is_at_most_one_in_twenty() -> None:
    found = verdicts(150, loss=0.02, seeds=10, n=1000)
    assert accused(found, "erased") <= most(150) and accused(found, "damaged") <= most(150)


def test_false_accusations_of_an_equal_method_are_at_most_one_in_twenty() -> None:
    for seeds, n in ((3, 40), (5, 400)):
        found = verdicts(150, seeds=seeds, n=n)
        assert accused(found, "dormant", "incomplete", "damaged", "over-forgotten") <= most(150)


def test_accusations_at_the_boundary_are_at_most_one_in_twenty() -> None:
    assert accused(verdicts(150, residual=0.1, seeds=5, n=400), "incomplete", "dormant") <= most(150)
    assert accused(verdicts(150, residual=-0.1, seeds=5, n=400), "over-forgotten") <= most(150)


def test_power_for_clear_cases() -> None:
    assert accused(verdicts(40, seeds=20, n=400), "erased") >= 36
    assert accused(verdicts(40, residual=0.0, after=0.4, seeds=5), "dormant") >= 36
    assert accused(verdicts(40, residual=0.4, seeds=5), "incomplete") >= 36
    assert accused(verdicts(40, loss=0.08, seeds=5), "damaged") >= 36


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
    forget, test = run(seed, residual=residual, seeds=references, n=400)
    label = {"relearn": (forget.attacked["relearn"][0], forget.attacked["relearn"][1][:1])}
    return [
        Quantity("forget_accuracy", "forget", "knowledge", True, forget.ids, forget.original[:1], forget.reference,
                 forget.unlearned[:1], label),
        Quantity("test_accuracy", "test", "utility", False, test.ids, test.original[:1], test.reference,
                 test.unlearned[:1]),
    ]  # fmt: skip


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
