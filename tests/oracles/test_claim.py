"""Claims are decided as tests of the stated level, checked by simulation and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from expunge.base.errors import SpecError
from expunge.evidence.claim import Claim, Rule, above, below, decide, ordered, within

WHY = "for the test"


def claim(rule: Rule, name: str = "c", *, primary: bool = False) -> Claim:
    return Claim(name, "It is so.", "nobody", rule, "unit", primary=primary)


def verdict(rule: Rule, *values: object) -> str:
    return decide([claim(rule)], [{"c": value} for value in values])[0].verdict


@pytest.mark.parametrize(
    ("rule", "values", "wanted"),
    [
        (above(0.0, WHY), (1.0, 1.1, 0.9), "reproduced"),
        (above(0.0, WHY), (-1.0, -1.1, -0.9), "not reproduced"),
        (above(0.0, WHY), (1.0, -1.1, 0.2), "inconclusive"),
        (below(0.0, WHY), (-1.0, -1.1, -0.9), "reproduced"),
        (within(-0.3, 0.3, WHY), (0.01, -0.02, 0.0), "reproduced"),
        (within(-0.3, 0.3, WHY), (0.5, 0.52, 0.49), "not reproduced"),
        (within(-0.3, 0.3, WHY), (0.2, 0.4, 0.1), "inconclusive"),
        (ordered(WHY), ([3.0, 2.0, 1.0], [3.1, 2.0, 1.1], [3.0, 2.1, 0.9]), "reproduced"),
        (ordered(WHY), ([3.0, 1.0, 2.0], [3.1, 1.1, 2.0], [3.0, 0.9, 2.1]), "not reproduced"),
        (ordered(WHY, 1.5), ([3.0, 2.0], [3.1, 2.1], [2.9, 2.0]), "not reproduced"),
        (above(0.0, WHY), ([1.0, 0.1], [1.1, -0.1], [0.9, 0.05]), "inconclusive"),
        (above(0.0, WHY), (math.nan, 1.0, 1.0), "inconclusive"),
        (above(0.0, WHY), (5.0,), "inconclusive"),
    ],
)
def test_by_hand(rule: Rule, values: tuple, wanted: str) -> None:
    assert verdict(rule, *values) == wanted


def test_p_value_is_that_of_scipy() -> None:
    values = [0.3, 0.1, 0.5, -0.1, 0.4]
    bound = next(
        b for b in np.linspace(-1, 1, 20001) if stats.ttest_1samp(values, b, alternative="greater").pvalue > 0.05
    )
    assert verdict(above(bound - 1e-3, WHY), *values) == "reproduced"
    assert verdict(above(bound + 1e-3, WHY), *values) == "inconclusive"


def test_a_claim_at_its_bound_is_reproduced_as_rarely_as_the_level_says() -> None:
    draws = np.random.default_rng(0).normal(size=(4000, 5))
    found = [verdict(above(0.0, WHY), *row) for row in draws]
    # Three standard errors of a rate of 5 % in 4,000 trials are one point.
    assert abs(found.count("reproduced") / 4000 - 0.05) < 0.0104
    assert abs(found.count("not reproduced") / 4000 - 0.05) < 0.0104


def test_an_array_is_contradicted_as_rarely_as_the_level_says() -> None:
    draws = np.random.default_rng(1).normal(size=(2000, 5, 4))
    found = [verdict(above(0.0, WHY), *row) for row in draws]
    assert found.count("not reproduced") / 2000 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


def test_primary_claims_share_the_level() -> None:
    rng = np.random.default_rng(2)
    claims = [claim(above(0.0, WHY), name, primary=True) for name in "abc"]
    any_false = 0
    for _ in range(2000):
        seeds = [dict(zip("abc", row, strict=True)) for row in rng.normal(size=(5, 3))]
        any_false += any(f.verdict == "reproduced" for f in decide(claims, seeds))
    assert any_false / 2000 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


def test_secondary_claims_take_no_level_from_primary_ones() -> None:
    strong = [{"a": v, "b": w} for v, w in ((0.5, 1.0), (0.2, 1.1), (0.6, 0.9))]
    alone = decide([claim(above(0.0, WHY), "a", primary=True), claim(above(0.0, WHY), "b")], strong)
    together = decide([claim(above(0.0, WHY), "a", primary=True), claim(above(2.0, WHY), "b", primary=True)], strong)
    assert alone[0].verdict == "reproduced"
    assert together[0].verdict == "inconclusive"
    assert "takes back" in together[0].note


def test_seeds_that_agree_do_not_hide_the_error_over_examples() -> None:
    sure = [{"c": 0.05, "c.se": 0.0}] * 4
    unsure = [{"c": 0.05, "c.se": 0.2}] * 4
    assert decide([claim(above(0.0, WHY))], sure)[0].verdict == "reproduced"
    found = decide([claim(above(0.0, WHY))], unsure)[0]
    assert found.verdict == "inconclusive"
    assert found.contrast.se == pytest.approx(0.1)


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(SpecError, match="no number"):
        decide([claim(above(0.0, WHY))], [{"c": "many"}])
    with pytest.raises(SpecError, match="no number"):
        decide([claim(above(0.0, WHY))], [{"c": [1.0, 2.0]}, {"c": [1.0]}])
    with pytest.raises(SpecError, match="no order"):
        decide([claim(ordered(WHY))], [{"c": 1.0}])
