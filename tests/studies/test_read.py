"""Numbers that studies read from scores, against sums by hand; and how settings are chosen and results shown."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from expunge.base.errors import SpecError
from expunge.evidence.contrast import contrast, step_of
from expunge.evidence.scores import Scores
from expunge.evidence.table import Measured, Table
from expunge.reporting.study import reproduction
from expunge.studies.dormant.setup import other_images
from expunge.study.choose import kept_and_forgotten, near_retrained
from expunge.study.read import Gap, OfSeed, mean_gap, spearman, with_error


def scores(values: list[float], metric: str = "accuracy", split: str = "forget", role: Any = "knowledge") -> Scores:
    return Scores(metric, split, np.array(values), np.arange(len(values)), role, "share", "reference")


VALUES = {
    ("original", None): [1, 1, 1, 1, 1],
    ("reference", None): [0, 0, 1, 0, 0],
    ("reference", "relearn"): [0, 1, 1, 0, 0],
    ("scrub", None): [0, 0, 1, 1, 0],
    ("scrub", "relearn"): [1, 1, 1, 1, 0],
    ("scrub", "hot"): [1, 1, 1, 1, 1],
    ("reference", "hot"): [0, 1, 1, 1, 0],
}


@pytest.fixture
def one() -> OfSeed:
    measured = [Measured(model, 3, attack, scores(values)) for (model, attack), values in VALUES.items()]
    measured.append(Measured("scrub", 3, "relearn", scores([1, 0, 1, 0, 0], "known_at_end", role="description")))
    return OfSeed(Table(measured, ["original", "reference", "scrub"], [3], ["relearn", "hot"]), 3)


def test_gaps_are_differences_of_means(one: OfSeed) -> None:
    assert one.gap("scrub").value == pytest.approx(0.2)
    assert one.gap("scrub", attack="relearn").value == pytest.approx(0.4)
    assert one.gain("scrub", "relearn").value == pytest.approx((0.8 - 0.4) - (0.4 - 0.2))
    assert one.between("scrub", "hot", "relearn").value == pytest.approx((1.0 - 0.8) - (0.6 - 0.4))
    assert one.margin("scrub", "relearn", 0.1).value == pytest.approx(0.4 - 0.1 * 0.8)
    assert one.margin("scrub", None, -0.1).value == pytest.approx(0.2 + 0.1 * 0.8)
    assert one.end("scrub", "relearn").value == pytest.approx(0.0)
    assert one.weighted([(2.0, "original"), (-1.0, "scrub")], ("accuracy", "forget")).value == pytest.approx(1.6)


def test_errors_are_those_of_paired_examples(one: OfSeed) -> None:
    difference = np.subtract(VALUES["scrub", "relearn"], VALUES["reference", "relearn"])
    # Two imagined examples that differ by the whole step, 1, one each way: contrast.py.
    wanted = math.hypot(difference.std(ddof=1) / math.sqrt(5), math.sqrt(2) / 7)
    assert one.gap("scrub", attack="relearn").sampling == pytest.approx(wanted)
    assert one.gap("scrub", "scrub").sampling > 0  # five agreements prove little


def everywhere(table: Table, values: list[float]) -> Table:
    """The table with the same answers from every model."""
    same = [replace(m, scores=replace(m.scores, values=np.array(values, dtype=float))) for m in table.measured]
    return replace(table, measured=same)


def rest_of(weights: tuple[float, ...]) -> float:
    """Variance of the mean of 5 agreeing answers, 3 of them right, that is left where weights do not add up to 0."""
    return float(sum(weights) ** 2 * np.var([1, 1, 0, 0, 1], ddof=1) / 5)


@pytest.mark.parametrize(
    ("read", "weights"),
    [
        (lambda one: one.gap("scrub", attack="relearn"), (1, -1)),
        (lambda one: one.gain("scrub", "relearn"), (1, -1, -1, 1)),
        (lambda one: one.margin("scrub", "relearn", 0.1), (1, -1, -0.1, 0.1)),
        (lambda one: one.weighted([(2.0, "original"), (-1.0, "scrub")], ("accuracy", "forget")), (2, -1)),
    ],
    ids=["gap", "gain", "margin", "weighted"],
)
def test_the_step_is_the_most_that_one_example_can_change(
    one: OfSeed, read: Callable[[OfSeed], Gap], weights: tuple[float, ...]
) -> None:
    """Over every pattern of right and wrong answers of the models: the same step as in verdicts."""
    patterns = np.array(list(itertools.product((0, 1), repeat=len(weights))))
    largest = np.abs(patterns @ np.array(weights)).max()
    assert step_of(weights, 1.0) == pytest.approx(largest)
    # Five examples: the two imagined ones weigh 2 (step / 7)^2, and nothing else is left if the models agree.
    agreeing = replace(one, table=everywhere(one.table, [1, 1, 0, 0, 1]))
    assert read(agreeing).sampling ** 2 == pytest.approx(rest_of(weights) + 2 * (largest / 7) ** 2)


def test_errors_are_those_of_all_seeds_of_the_run() -> None:
    """Two seeds on the same examples: what both share lasts, and the rest averages out."""
    generator = np.random.default_rng(0)
    values = {
        (m, s): (generator.random(40) < 0.5).astype(float) for m in ("original", "reference", "a") for s in (0, 1)
    }
    measured = [Measured(m, s, None, scores(list(v))) for (m, s), v in values.items()]
    table = Table(measured, ["original", "reference", "a"], [0, 1], [])
    gaps = [OfSeed(table, seed).gap("a") for seed in (0, 1)]
    d = [values["a", s] - values["reference", s] for s in (0, 1)]
    wanted = contrast(d, [np.arange(40)] * 2, step=1.0)
    for gap, own in zip(gaps, d, strict=True):
        assert gap == pytest.approx((own.mean(), wanted.sampling, wanted.lasting, 40))


def test_what_was_not_measured_is_refused(one: OfSeed) -> None:
    with pytest.raises(SpecError, match="was not measured"):
        one.gap("scrub", attack="cold")


def test_arrays_carry_names_and_errors() -> None:
    assert with_error("c", {"a": Gap(1.0, 0.1, 0.0, 9), "b": Gap(2.0, 0.2, 0.1, 8)}) == {
        "c": [1.0, 2.0],
        "c.of": ["a", "b"],
        "c.sampling": [0.1, 0.2],
        "c.lasting": [0.0, 0.1],
        "c.examples": 8,
    }
    assert mean_gap([Gap(1.0, 0.1, 0.0, 9), Gap(2.0, 0.3, 0.2, 8)]) == pytest.approx((1.5, 0.2, 0.1, 8))


def test_ranks() -> None:
    x, y = [3.0, 1.0, 2.0, 5.0], [1.0, 4.0, 3.0, 2.0]
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert spearman(x, [1.0] * 4) == 0.0
    assert math.isnan(spearman(x, [1.0, math.nan, 2.0, 3.0]))


def test_settings_are_chosen_by_forget_and_retain_alone() -> None:
    rates = {"reference": (0.2, 1.0), "near": (0.3, 0.9), "far": (0.9, 1.0)}
    measured = []
    for model, (forget, retain) in {"original": (1.0, 1.0), **rates}.items():
        for split, rate in (("forget", forget), ("retain", retain), ("test", 0.1 if model == "near" else 0.9)):
            values = [1.0] * round(10 * rate) + [0.0] * round(10 - 10 * rate)
            measured.append(Measured(model, 0, None, scores(values, split=split, role="description")))
    table = Table(measured, ["original", *rates], [0], [])
    found = near_retrained(table)
    assert found["near"] == pytest.approx(0.9 * 0.9) and found["far"] == pytest.approx(0.3)
    kept = kept_and_forgotten(table)
    assert kept["near"] == pytest.approx(0.9 * 0.7) and kept["reference"] == pytest.approx(1.0 * 0.8)


def test_other_images_share_none_with_the_main_run() -> None:
    data = other_images(100, 50)
    assert data.train.min() >= 5000 and len(data.train) == 100
    assert data.test.max() < 5000 and data.cscore is not None and not data.cscore[data.train].isnan().any()


def test_a_comment_stands_below_its_study_and_names_a_claim() -> None:
    claim = {
        "id": "flat",
        "statement": "It | is flat.",
        "source": "nobody",
        "primary": True,
        "paper_value": None,
        "rule": {"holds": "< 1", "reason": "one is much"},
        "measured": {"value": 2.0, "low": 1.5, "high": 2.5, "n": 3, "unit": "share", "parts": {"a": 2.0, "b": 0.0}},
        "verdict": "not reproduced",
        "note": "",
    }
    result = {
        "study": "toy",
        "preset": "cpu",
        "paper": "Toy",
        "seeds": [0],
        "spent": 90,
        "commit": None,
        "claims": [claim],
    }
    result["environment"] = {"packages": {"torch": "2"}}
    text = reproduction([result], {"toy": {"flat": "The table was bent."}})
    assert "- `flat`: The table was bent." in text
    assert "It \\| is flat." in text and "means: a 2, b 0" in text and "2 [1.5, 2.5] share, n = 3" in text
    with pytest.raises(SpecError, match="did you mean 'flat'"):
        reproduction([result], {"toy": {"flatt": "?"}})
