"""Intervals against scipy, definitions and closed forms; scores against what was put in."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from expunge.base.errors import RunError, SpecError
from expunge.evidence.contrast import Contrast, contrast, sampling_error
from expunge.evidence.estimate import Estimate, over_seeds
from expunge.evidence.intervals import holm, student, t_quantile, wilson
from expunge.evidence.quantity import Quantity
from expunge.evidence.scores import Scores, dumps, load, loads

# Closed forms in float64: only rounding separates the two sides.
EXACT = {"rel": 1e-10, "abs": 1e-12}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.3, 1.0, shape)


@pytest.mark.parametrize("df", [1, 2, 7.5, 400])
def test_t_quantile_is_that_of_scipy(df: float) -> None:
    assert t_quantile(df) == pytest.approx(stats.t.ppf(0.95, df), **EXACT)


def test_student_is_the_interval_of_a_t_test() -> None:
    values = normal(9)
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.90)
    assert student(values) == pytest.approx((values.mean(), low, high), **EXACT)


def test_student_has_no_interval_for_one_value() -> None:
    mean, low, high = student(np.array([2.0]))
    assert mean == 2.0 and math.isnan(low) and math.isnan(high)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (3, 10), (1, 1), (499, 1000)])
def test_wilson_is_that_of_scipy(successes: int, n: int) -> None:
    expected = stats.binomtest(successes, n).proportion_ci(0.90, method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), **EXACT)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(pvalues: list[float]) -> None:
    def closed(index: int) -> float:
        # A hypothesis falls when every intersection that contains it falls.
        indices = range(len(pvalues))
        families = [f for k in indices for f in itertools.combinations(indices, k + 1) if index in f]
        return max(min(1.0, len(family) * min(pvalues[i] for i in family)) for family in families)

    assert holm(pvalues) == pytest.approx([closed(index) for index in range(len(pvalues))], **EXACT)


def test_p_values_and_bounds_are_those_of_one_sided_t_tests() -> None:
    seeds = normal(6)
    found = contrast([np.array([value]) for value in seeds], [np.zeros(1, dtype=np.int64)] * 6)
    greater, less = (
        stats.ttest_1samp(seeds, 0.1, alternative="greater"),
        stats.ttest_1samp(seeds, 0.1, alternative="less"),
    )
    assert found.p_above(0.1) == pytest.approx(greater.pvalue, **EXACT)
    assert found.p_below(0.1) == pytest.approx(less.pvalue, **EXACT)
    assert (found.low, found.high) == pytest.approx(student(seeds)[1:], **EXACT)
    assert found.p_above(found.low) == pytest.approx(0.05, **EXACT)


@pytest.mark.parametrize("se", [math.nan, 0.1])
def test_what_cannot_be_computed_accuses_nobody(se: float) -> None:
    broken = Contrast(math.nan, se, 4)
    assert broken.p_above(0) == broken.p_below(0) == 1.0
    assert Contrast(5.0, math.nan, 0).p_above(0) == 1.0


def test_the_same_examples_in_every_seed_are_averaged_first() -> None:
    values = normal(5, 40)
    found = contrast(list(values), [np.arange(40)] * 5)
    assert found.sampling == pytest.approx(values.mean(0).std(ddof=1) / math.sqrt(40), **EXACT)


def test_other_examples_in_every_seed_are_independent() -> None:
    values = [normal(n, seed=n) for n in (30, 40, 50)]
    ids = [np.arange(n) + 100 * n for n in (30, 40, 50)]
    found = contrast(values, ids)
    expected = math.sqrt(np.mean([v.var(ddof=1) / v.size for v in values])) / math.sqrt(3)
    assert found.sampling == pytest.approx(expected, **EXACT)
    assert found.lasting == pytest.approx(0.0, abs=1e-9)


def test_examples_partly_in_common_lie_between() -> None:
    # A strong effect per example, so that what is shared matters.
    effect = np.random.default_rng(1).normal(size=300)
    parts = {"same": [0, 0, 0], "partly": [0, 50, 100], "other": [0, 100, 200]}
    errors = {
        name: contrast([effect[s : s + 100] for s in starts], [np.arange(s, s + 100) for s in starts]).sampling
        for name, starts in parts.items()
    }
    assert errors["other"] < errors["partly"] < errors["same"]


def test_the_cluster_error_is_the_spread_of_repeated_sampling() -> None:
    generator, found, means = np.random.default_rng(2), [], []
    for _ in range(600):
        effect = generator.normal(size=90)
        ids = [np.arange(0, 60), np.arange(30, 90)]
        values = [effect[i] + generator.normal(size=60) for i in ids]
        found.append(contrast(values, ids).sampling)
        means.append(np.mean([v.mean() for v in values]))
    # 600 repeats know a standard deviation to 3 %; three of those.
    assert np.sqrt(np.mean(np.square(found))) == pytest.approx(np.std(means), rel=0.09)


def test_a_single_seed_has_a_mean_but_no_error() -> None:
    found = contrast([normal(50)], [np.arange(50)])
    assert math.isfinite(found.mean) and math.isnan(found.se) and math.isnan(found.low)


def test_agreement_on_every_example_leaves_the_error_of_bonett_and_price() -> None:
    same = [np.zeros(10)] * 3
    found = contrast(same, [np.arange(10)] * 3, step=1.0)
    cell = 1 / 12  # no discordant pair among 10, one added to each of the two cells
    assert found.se == pytest.approx(math.sqrt((cell + cell) / 12), **EXACT)
    assert contrast(same, [np.arange(10)] * 3).se == 0.0


def test_an_interval_without_disagreement_covers_the_rule_of_three() -> None:
    # 0 of n excludes a rate of 1 - 0.05^(1/n); the normal quantile is the smallest that is ever used.
    for n in (10, 40, 160, 1000):
        half = 1.645 * sampling_error([(1.0, np.zeros(n), np.arange(n))], step=1.0)
        assert half == pytest.approx(1 - 0.05 ** (1 / n), rel=0.3)


def test_seeds_needed_is_the_first_number_that_suffices() -> None:
    values = normal(4, 1)
    found = contrast(list(values), [np.zeros(1, dtype=np.int64)] * 4)
    need = found.seeds_needed(0.2)
    assert need is not None
    assert stats.t.ppf(0.95, need - 1) * found.spread / math.sqrt(need) < 0.2
    assert stats.t.ppf(0.95, need - 2) * found.spread / math.sqrt(need - 1) >= 0.2


def test_examples_are_the_limit_where_seeds_cannot_help() -> None:
    stuck = contrast([normal(25)] * 5, [np.arange(25)] * 5)
    assert stuck.seeds_needed(0.1) is None and stuck.limited_by_examples(0.1)
    fresh = contrast([normal(25, seed=s) for s in range(5)], [np.arange(25) + 25 * s for s in range(5)])
    assert fresh.seeds_needed(0.1) is not None and not fresh.limited_by_examples(0.1)


def test_the_forecast_of_the_sampling_error_is_what_more_seeds_then_have() -> None:
    generator = np.random.default_rng(5)
    values = generator.normal(size=400) + generator.normal(0.0, 2.0, (40, 400))
    few, many = (contrast(list(values[:seeds]), [np.arange(400)] * seeds) for seeds in (5, 40))
    forecast = math.sqrt(few.lasting**2 + (few.sampling**2 - few.lasting**2) * 5 / 40)
    # A standard error from 400 examples is known to 4 %, the difference of two of them to a little more.
    assert forecast == pytest.approx(many.sampling, rel=0.15)
    assert few.lasting == pytest.approx(1 / math.sqrt(400), rel=0.25)


@settings(deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_seeds_and_examples_does_not_matter(random: object) -> None:
    values, ids = list(normal(4, 12)), [np.arange(12) + 3 * s for s in range(4)]
    seeds = [0, 1, 2, 3]
    random.shuffle(seeds)  # type: ignore[attr-defined]
    order = list(range(12))
    random.shuffle(order)  # type: ignore[attr-defined]
    before = contrast(values, ids, step=1.0)
    after = contrast([values[s][order] for s in seeds], [ids[s][order] for s in seeds], step=1.0)
    assert (after.mean, after.se, after.sampling) == pytest.approx((before.mean, before.se, before.sampling), **EXACT)


def scores(values: object, **facts: object) -> Scores:
    array = np.asarray(values, dtype=np.float64)
    defaults: dict[str, object] = {"metric": "accuracy", "split": "forget", "role": "knowledge", "unit": "share"}
    return Scores(values=array, ids=np.arange(array.size), **({"better": "reference"} | defaults | facts))  # type: ignore[arg-type]


def test_an_estimate_of_right_or_wrong_is_wilsons_and_otherwise_students() -> None:
    right = scores([1, 0, 1, 1]).estimate()
    assert (right.low, right.high) == pytest.approx(wilson(3, 4), **EXACT) and right.n == 4
    loss = scores([0.5, 2.0, 1.0], metric="loss", sign=-1).estimate()
    assert (loss.value, loss.low, loss.high) == pytest.approx(student(np.array([0.5, 2.0, 1.0])), **EXACT)


def test_copies_of_one_example_are_one_draw() -> None:
    copied = scores(np.repeat([1.0, 0.0, 1.0, 0.0], 5), group=np.repeat(np.arange(4), 5)).estimate()
    once = student(np.array([1.0, 0.0, 1.0, 0.0]))
    assert copied.n == 4
    # The rows of a group agree, so its error is that of four values; no group at all would halve it.
    assert (copied.low, copied.high) == pytest.approx(once[1:], **EXACT)


def test_a_barrier_is_the_rise_above_the_chord_and_has_no_interval() -> None:
    rise = scores([1.0, 4.0, 3.0], role="predictor", reduce="barrier").estimate()
    assert rise.value == pytest.approx(2.0) and math.isnan(rise.low)
    assert scores([1.0, 0.0, 3.0], role="predictor", reduce="barrier").estimate().value == 0.0


def test_estimates_that_cannot_be_computed_are_nan_and_say_so() -> None:
    lost = scores([math.inf, math.inf, 1.0]).estimate()
    assert lost.value == math.inf and math.isnan(lost.low)
    assert math.isnan(over_seeds([0.5], "share", "higher").low)
    with pytest.raises(SpecError, match="did you mean 'higher'"):
        Estimate(0.0, 0.0, 0.0, 1, "share", "highr")  # type: ignore[arg-type]


@given(
    st.lists(
        st.tuples(st.lists(st.floats(width=64), min_size=1, max_size=5), st.sampled_from([1, -1]), st.booleans()),
        max_size=4,
    )
)
def test_scores_survive_their_file_bit_by_bit(entries: list[tuple[list[float], int, bool]]) -> None:
    before = [scores(v, sign=s, group=np.zeros(len(v), dtype=int) if g else None) for v, s, g in entries]
    data = dumps(before)
    after = loads(data)
    assert dumps(after) == data
    assert [entry.values.tobytes() for entry in after] == [entry.values.tobytes() for entry in before]
    assert [(e.key, e.role, e.sign, e.group is None) for e in after] == [
        (e.key, e.role, e.sign, e.group is None) for e in before
    ]


def test_a_damaged_file_names_itself(tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    path.write_bytes(dumps([scores([1.0, 0.0])]))
    assert load(tmp_path, path.name)[0].estimate() == scores([1.0, 0.0]).estimate()
    for broken in (b"", b"\xff" * 40, path.read_bytes()[:-8]):
        path.write_bytes(broken)
        with pytest.raises(RunError, match=r"scores\.safetensors.*run again"):
            load(tmp_path, path.name)


@pytest.mark.parametrize(
    "facts",
    [{"role": "oracle"}, {"sign": 0}, {"reduce": "single"}, {"group": np.zeros(3)}, {"better": "up"}],
    ids=lambda facts: next(iter(facts)),
)
def test_scores_refuse_what_they_cannot_mean(facts: dict[str, object]) -> None:
    with pytest.raises(SpecError, match=f"accuracy.{'values' if 'reduce' in facts else next(iter(facts))}"):
        scores([1.0, 0.0], **facts)


def test_scores_cannot_be_changed_from_outside() -> None:
    values = np.array([1.0, 0.0])
    entry = Scores("accuracy", "forget", values, np.arange(2), "knowledge", "share", "reference")
    values[0] = 9.0
    assert entry.values[0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        entry.values[0] = 9.0


def test_a_quantity_from_scores_is_oriented_and_aligned() -> None:
    one = Scores("loss", "forget", np.array([1.0, 2.0]), np.array([7, 3]), "knowledge", "nat", "higher", sign=-1)
    other = Scores("loss", "forget", np.array([5.0, 6.0]), np.array([3, 7]), "knowledge", "nat", "higher", sign=-1)
    found = Quantity.from_scores([one], [other], [one], {"relearn": ([other], [one])})
    assert found.ids[0].tolist() == [3, 7]
    assert found.original[0].tolist() == [-2.0, -1.0] and found.reference[0].tolist() == [-5.0, -6.0]
    assert found.values("reference_after", "relearn")[0].tolist() == [-5.0, -6.0]


def test_a_quantity_refuses_models_scored_on_other_examples() -> None:
    with pytest.raises(SpecError, match="different examples"):
        Quantity.from_scores([scores([1, 0])], [scores([1, 0, 1])], [scores([1, 0])])
    with pytest.raises(SpecError, match="role in a verdict 'predictor'"):
        one = scores([1.0], role="predictor", reduce="single")
        Quantity.from_scores([one], [one], [one])
