"""Every flag from numbers that can be worked out by hand, and the controls that a verdict has to catch."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from expunge.base.errors import SpecError
from expunge.evidence.quantity import Quantity
from expunge.evidence.verdict import Verdict, judge_method, judge_model, judge_without_reference

N = 400


def spread(mean: float, seeds: int, by: float = 0.0) -> list[float]:
    """Seed means around `mean`, exactly: steps of `by` that cancel."""
    steps = np.arange(seeds) - (seeds - 1) / 2
    return list(mean + by * steps)


def column(rate: float, n: int = N) -> np.ndarray:
    """The first examples are right: nested, so that models with the same rate agree on every example."""
    return (np.arange(n) < round(rate * n)).astype(float)


def columns(rates: list[float], n: int = N) -> list[np.ndarray]:
    return [column(rate, n) for rate in rates]


def forget(
    m: float,
    after: tuple[float, float] | None = None,
    *,
    o: float = 1.0,
    r: float = 0.5,
    seeds: int = 5,
    by: float = 0.005,
) -> Quantity:
    """Forget accuracy with rates o, r, m, and (r, m) after an attack; the margin is 0.1 (o - r)."""
    attacked = {}
    if after is not None:
        attacked = {"relearn": (columns([after[0]] * seeds), columns(spread(after[1], seeds, by)))}
    return Quantity(
        metric="forget_accuracy",
        split="forget",
        role="knowledge",
        required=True,
        ids=[np.arange(N)],
        original=columns([o] * seeds),
        reference=columns([r] * seeds),
        unlearned=columns(spread(m, seeds, by)),
        attacked=attacked,
    )


def utility(
    m: float = 0.9, r: float = 0.9, *, o: float = 0.9, seeds: int = 5, n: int = 2000, after: str | None = "relearn"
) -> Quantity:
    return Quantity(
        metric="test_accuracy",
        split="test",
        role="utility",
        required=False,
        ids=[np.arange(n)],
        original=columns([o] * seeds, n),
        reference=columns([r] * seeds, n),
        unlearned=columns([m] * seeds, n),
        attacked={} if after is None else {after: (columns([r] * seeds, n), columns([m] * seeds, n))},
    )


def half_width(d: np.ndarray, *, level: float = 0.05, step: float = 1.0, models: float = 0.0) -> float:
    """Half-width for `d`, [seeds, examples], from the definition; `models` adds the scatter of one model."""
    seeds, n = d.shape
    per_example = d.mean(0) - d.mean()
    sampling2 = per_example @ per_example / n / (n - 1) + 2 * (step / (n + 2)) ** 2
    # What is left of each example in each seed after its mean over seeds averages out over more seeds.
    rest = d - d.mean(1, keepdims=True) - per_example
    passing2 = np.square(rest).sum() / (seeds - 1) / seeds / n / (n - 1)
    between2 = d.mean(1).var(ddof=1) * (1 / seeds + models)
    over_seeds, over_examples = (stats.t.isf(level, df) for df in (seeds - 1, n - 1))
    both = over_seeds**2 * between2 + over_examples**2 * max(sampling2 - passing2, 0.0)
    return math.sqrt(max(both, over_examples**2 * sampling2))


def told(verdict: Verdict) -> str:
    return " ".join(verdict.reasons)


def test_erased_when_equivalent_before_and_after_and_useful() -> None:
    found = judge_method("npo", [forget(0.5, after=(0.6, 0.6)), utility()])
    assert (found.verdict, found.flags, found.claim) == ("erased", ["erased"], "method")
    assert "not a guarantee" in told(found)


def test_dormant_when_the_attack_wakes_it() -> None:
    found = judge_method("relabel", [forget(0.5, after=(0.6, 0.9)), utility()])
    assert found.flags == ["dormant", "incomplete"]
    assert "after relearn: residual 30.0 points" in told(found) and "the margin 5.0" in told(found)


def test_incomplete_but_not_dormant_when_the_attack_adds_nothing() -> None:
    found = judge_method("weak", [forget(0.7, after=(0.8, 1.0)), utility()])
    assert found.flags == ["incomplete"]
    assert "before any attack: residual 20.0 points" in found.reasons[0]


def test_damaged_when_utility_lies_below_the_bound() -> None:
    found = judge_method("harsh", [forget(0.5, after=(0.6, 0.6)), utility(m=0.8)])
    assert found.flags == ["damaged"]
    assert "unlearned minus retrained is -10.0 points" in told(found)


def test_over_forgotten_when_worse_than_unseen() -> None:
    found = judge_method("ascent", [forget(0.2, after=(0.6, 0.6)), utility()])
    assert found.flags == ["over-forgotten"]
    assert "-30.0 points" in told(found) and "minus the margin, -5.0" in told(found)


def test_all_flags_are_shown_and_the_first_is_the_headline() -> None:
    found = judge_method("worst", [forget(0.2, after=(0.6, 0.9)), utility(m=0.5)])
    assert found.flags == ["dormant", "incomplete", "damaged", "over-forgotten"]
    assert found.verdict == "dormant"


@pytest.mark.parametrize("seeds", [3, 5])
def test_numbers_of_an_audit_by_hand(seeds: int) -> None:
    found = judge_method("hand", [forget(0.55, after=(0.6, 0.7), seeds=seeds, by=0.05), utility(seeds=seeds)])
    before, after = found.audits[:2]
    half = half_width(np.stack(columns(spread(0.55, seeds, 0.05))) - column(0.5))
    assert before.residual == pytest.approx(0.05) and before.range == pytest.approx(0.5)
    assert before.margin == pytest.approx(0.05)
    assert (before.low, before.high) == pytest.approx((0.05 - half, 0.05 + half))
    assert before.gain is None
    assert after.residual == pytest.approx(0.10) and after.gain == pytest.approx(0.05)
    assert not before.power


def test_exceeding_is_tested_on_the_linear_contrast() -> None:
    # The range varies over seeds together with the residual: r moves, m - 0.1 o - 0.9 r is what counts.
    r = spread(0.5, 3, 0.1)
    entry = replace(forget(0.6, seeds=3), reference=columns(r), unlearned=columns([0.6] * 3))
    before = judge_method("linear", [entry]).audits[0]
    over = column(0.6) - np.stack(columns(r)) - 0.1 * (1 - np.stack(columns(r)))
    level = before.p["incomplete"] / 2  # above or below the margin: two accusations
    assert half_width(over, level=level) == pytest.approx(over.mean(), rel=1e-9)


def test_accusations_are_corrected_over_audits_and_attacks() -> None:
    # Alone the audit accuses at p = 0.03; three more audits that see nothing raise it fourfold, any utility twofold.
    suspect = forget(0.615, seeds=3, by=0.0125)
    alone = judge_method("one", [suspect])
    assert alone.flags == ["incomplete"] and 0.0125 < alone.audits[0].p["incomplete"] <= 0.05
    others = [replace(forget(0.5, seeds=3), metric=f"other{i}") for i in range(3)]
    many = judge_method("many", [suspect, *others])
    assert many.audits[0].p["incomplete"] == pytest.approx(4 * alone.audits[0].p["incomplete"])
    assert many.flags == ["inconclusive"]
    useful = judge_method("useful", [suspect, utility(seeds=3)])
    assert useful.audits[0].p["incomplete"] == pytest.approx(2 * alone.audits[0].p["incomplete"])


def test_without_a_range_nobody_is_accused() -> None:
    found = judge_method("easy", [forget(0.9, after=(0.5, 1.0), o=0.5, r=0.5), utility()])
    assert found.flags == ["inconclusive"]
    assert "nothing to forget" in told(found)
    assert all(p == 1.0 for audit in found.audits[:2] for p in audit.p.values())


def test_negative_control_never_unlearned() -> None:
    found = judge_method("nothing", [forget(1.0, after=(0.6, 1.0), by=0.0), utility()])
    assert found.verdict == "incomplete"


def test_negative_control_random_weights() -> None:
    found = judge_method("random", [forget(0.1, after=(0.6, 0.1)), utility(m=0.1)])
    assert found.verdict == "damaged" and "over-forgotten" in found.flags


def test_agreeing_seeds_on_ten_examples_prove_nothing() -> None:
    ten = forget(0.5, after=(0.5, 0.5), r=0.5, seeds=3, by=0.0)
    few = replace(
        ten,
        ids=[np.arange(10)],
        original=columns([1.0] * 3, 10),
        reference=columns([0.5] * 3, 10),
        unlearned=columns([0.5] * 3, 10),
        attacked={"relearn": (columns([0.5] * 3, 10), columns([0.5] * 3, 10))},
    )
    found = judge_method("agreeing", [few, utility(seeds=3)])
    assert found.flags == ["inconclusive"]
    assert "smallest gap this run could have excluded is 21.6" in told(found)
    assert "the number of forget examples, 10, not of seeds, is the limit" in told(found)


def test_a_model_that_is_its_own_reference_proves_nothing() -> None:
    generator = np.random.default_rng(0)
    low, high = ([generator.normal(mean, 0.1, 10) for _ in range(3)] for mean in (0.0, 5.0))
    same = Quantity("margin", "forget", "knowledge", True, [np.arange(10)], high, low, low, {"relearn": (low, low)})
    assert judge_method("itself", [same, utility(seeds=3)]).flags == ["inconclusive"]


def test_inconclusive_names_the_gap_and_the_seeds() -> None:
    found = judge_method("noisy", [forget(0.51, after=(0.6, 0.61), seeds=3, by=0.06), utility(seeds=3)])
    assert found.flags == ["inconclusive"]
    assert "smallest gap this run could have excluded is 1" in told(found) and "seeds would decide" in told(found)


@pytest.mark.parametrize(("m", "side"), [(0.595, "above the margin"), (0.405, "below minus the margin")])
def test_what_only_the_correction_keeps_from_an_accusation_says_so(m: float, side: str) -> None:
    """Spread such that the interval lies beyond the margin for few tests and not for many."""
    quantities = [forget(m, seeds=3, by=0.005), utility(seeds=3)]
    assert judge_method("alone", quantities).flags != ["inconclusive"]
    found = judge_method("among", [*quantities, *(forget(0.5, seeds=3, by=0.005) for _ in range(9))])
    assert found.flags == ["inconclusive"]
    assert f"lies {side}, but not clearly enough for one of 40 tests (Holm's correction" in told(found)


@pytest.mark.parametrize(
    ("quantities", "reason"),
    [
        ([forget(0.5), utility()], "No attack was run"),
        ([forget(0.5, after=(0.6, 0.6))], "No utility audit was run"),
        ([replace(forget(0.5, after=(0.6, 0.6)), required=False), utility()], "No required knowledge audit"),
        ([forget(0.5), replace(forget(0.5, after=(0.6, 0.6)), metric="recitation"), utility()], "not repeated after"),
        ([forget(0.5, after=(0.6, 0.6), seeds=2), utility(seeds=2)], "at least 3 seeds, found 2"),
        ([forget(0.5, after=(0.6, 0.6), seeds=1), utility(seeds=1)], "at least 3 seeds, found 1"),
        ([forget(0.5, after=(0.6, 0.6)), utility(m=0.8845)], "not wholly above -2.0"),
        ([], "No required knowledge audit"),
    ],
    ids=["attack", "utility", "required", "repeated", "two seeds", "one seed", "straddling", "empty"],
)
def test_erased_says_what_is_lacking(quantities: list[Quantity], reason: str) -> None:
    found = judge_method("almost", quantities)
    assert found.flags == ["inconclusive"]
    assert reason in told(found)
    if quantities and quantities[0].required:
        assert "this run could have excluded" in told(found)


def test_two_seeds_accuse_nobody_however_clear() -> None:
    assert judge_method("two", [forget(1.0, after=(0.5, 1.0), seeds=2), utility(m=0.1, seeds=2)]).flags == [
        "inconclusive"
    ]


def test_erased_is_withheld_while_another_audit_accuses() -> None:
    optional = replace(forget(0.9, after=(0.6, 0.95)), metric="membership", required=False)
    found = judge_method("both", [forget(0.5, after=(0.6, 0.6)), optional, utility()])
    assert found.flags == ["incomplete"]
    blind = replace(forget(0.5, o=0.5), metric="membership", required=False)
    assert judge_method("blind", [forget(0.5, after=(0.6, 0.6)), blind, utility()]).flags == ["erased"]


def probe(m: float, after: tuple[float, float] | None = None, seeds: int = 3) -> Quantity:
    return replace(forget(m, after, seeds=seeds, by=0.005), metric="recoverability", required=False)


CLEAN = [forget(0.5, after=(0.6, 0.6), seeds=3, by=0.001), utility(seeds=3)]
CROWD = [probe(0.5) for _ in range(9)]


@pytest.mark.parametrize(
    ("suspect", "flag"),
    [
        (probe(0.595), "inconclusive"),
        (probe(0.5, (0.6, 0.695)), "inconclusive"),
        (replace(probe(0.595), metric="membership"), "inconclusive"),
        (replace(probe(0.595), metric="loss", unit="nats"), "inconclusive"),
        (probe(0.54), "erased"),
        (replace(probe(0.595), original=columns([0.5] * 3)), "erased"),
    ],
    ids=["probe", "only after the attack", "membership", "in nats", "below the margin", "no range"],
)
def test_erased_is_withheld_beside_an_optional_audit_that_shows_knowledge_by_itself(
    suspect: Quantity, flag: str
) -> None:
    """As where a readout was edited alone and a probe reads the layer below; too many tests for an accusation."""
    found = judge_method("readout", [*CLEAN, suspect, *CROWD])
    assert found.flags == [flag]
    assert ("above the margin, but not clearly enough" in told(found)) == (flag == "inconclusive")


def test_values_that_are_not_finite_pass_and_accuse_nothing() -> None:
    entry = forget(0.5, after=(0.6, 0.6))
    lost = replace(entry, unlearned=[np.full(N, math.inf)] * 5, attacked={"relearn": ([np.full(N, math.inf)] * 5,) * 2})
    found = judge_method("diverged", [lost, utility()])
    assert found.flags == ["inconclusive"] and "not finite" in told(found)
    one = one_model(0.5, (0.6, 0.6), [0.5] * 3)
    gone = [replace(one[0], unlearned=[np.full(N, math.inf)], reference=[np.full(N, math.inf)] * 3), one[1]]
    assert "not finite" in told(judge_model("diverged", gone))
    alone = [replace(held_out(0.5, (0.6, 0.6)), unlearned=[np.full(N, -math.inf)]), utility(seeds=1)]
    assert "not finite" in told(judge_without_reference("diverged", alone))


def one_model(m: float, after: tuple[float, float], references: list[float], *, test: float = 0.9) -> list[Quantity]:
    entry = forget(m, after, seeds=1, by=0.0)
    moved, many = [after[0] + x - 0.5 for x in references], columns([0.9] * len(references), 2000)
    return [
        replace(entry, reference=columns(references), attacked={"relearn": (columns(moved), columns([after[1]]))}),
        replace(utility(test, seeds=1), reference=many, attacked={"relearn": (many, columns([test], 2000))}),
    ]


@pytest.mark.parametrize(
    ("m", "after", "test", "flag"),
    [
        (0.5, (0.6, 0.6), 0.9, "erased"),
        (0.5, (0.6, 0.9), 0.9, "dormant"),
        (0.8, (0.6, 0.9), 0.9, "incomplete"),
        (0.5, (0.6, 0.6), 0.5, "damaged"),
        (0.2, (0.6, 0.6), 0.9, "over-forgotten"),
    ],
)
def test_one_model_against_five_references(m: float, after: tuple[float, float], test: float, flag: str) -> None:
    found = judge_model("mine", one_model(m, after, spread(0.5, 5, 0.005), test=test))
    assert found.claim == "model" and flag in found.flags
    assert found.verdict == flag or flag == "incomplete"


def test_one_model_is_held_against_a_prediction_interval() -> None:
    references = spread(0.5, 4, 0.02)
    before = judge_model("mine", one_model(0.6, (0.6, 0.7), references)).audits[0]
    d = column(0.6) - np.stack(columns(references))
    half = half_width(d, models=1.0)
    assert (before.low, before.high) == pytest.approx((0.1 - half, 0.1 + half))
    assert before.margin == pytest.approx(0.05)
    # A thousand references cannot make one model's own scatter go away.
    assert "scatter of retrained models" in told(judge_model("mine", one_model(0.5, (0.6, 0.6), spread(0.5, 5, 0.04))))


def test_one_model_needs_three_references() -> None:
    found = judge_model("mine", one_model(1.0, (0.6, 1.0), [0.5, 0.5]))
    assert found.flags == ["inconclusive"] and "at least 3 references, found 2" in told(found)
    with pytest.raises(SpecError, match="exactly 1"):
        judge_model("mine", [forget(0.5)])


def held_out(m: float, after: tuple[float, float], *, r: float = 0.5, others: int = 300) -> Quantity:
    entry = forget(m, after, seeds=1, by=0.0)
    stand_in = {"relearn": ([column(after[0], others)], [column(after[1])])}
    return replace(entry, reference=[column(r, others)], reference_ids=[np.arange(others)], attacked=stand_in)


@pytest.mark.parametrize(
    ("m", "after", "test", "flag"),
    [
        (0.5, (0.6, 0.6), 0.9, "inconclusive"),
        (0.5, (0.6, 0.95), 0.9, "dormant"),
        (0.8, (0.7, 0.95), 0.9, "incomplete"),
        (0.5, (0.6, 0.6), 0.5, "damaged"),
        (0.2, (0.6, 0.6), 0.9, "over-forgotten"),
    ],
)
def test_without_references_there_are_only_accusations(
    m: float, after: tuple[float, float], test: float, flag: str
) -> None:
    found = judge_without_reference("found", [held_out(m, after), utility(test, seeds=1)])
    assert (found.verdict, found.claim) == (flag, "no reference")
    assert "erased" not in found.flags


def test_held_out_values_are_not_paired() -> None:
    before = judge_without_reference("found", [held_out(0.7, (0.6, 0.7)), utility(seeds=1)]).audits[0]
    m, r = column(0.7), column(0.5, 300)
    se = math.sqrt(m.var(ddof=1) / N + r.var(ddof=1) / 300 + 2 / (N + 2) ** 2 + 2 / 302**2)
    half = stats.t.ppf(0.95, 299) * se
    assert (before.low, before.high) == pytest.approx((0.2 - half, 0.2 + half))
    with pytest.raises(SpecError, match="reference_ids"):
        judge_without_reference("found", [forget(0.5)])


def test_utility_without_references_is_against_the_original() -> None:
    found = judge_without_reference("found", [held_out(0.5, (0.6, 0.6)), utility(0.9, r=0.5, o=0.95, seeds=1)])
    assert found.flags == ["damaged"] and "minus original is -5.0 points" in told(found)


def test_json_has_the_documented_shape() -> None:
    plain = judge_method("npo", [forget(0.5, after=(0.6, 0.6)), utility()]).as_json()
    assert list(plain) == ["model", "verdict", "flags", "reasons", "audits", "attacks"]
    assert {"metric", "attack", "residual", "margin", "power"} <= plain["audits"][0].keys()
    assert json.loads(json.dumps(plain)) == plain


def test_a_quantity_refuses_lists_that_do_not_fit() -> None:
    with pytest.raises(SpecError, match=r"found 4 seeds.*allowed: 5"):
        replace(forget(0.5), original=columns([1.0] * 4))
    with pytest.raises(SpecError, match=r"forget_accuracy.unlearned: seed 0 has shape \(7,\)"):
        replace(forget(0.5), unlearned=columns([0.5] * 5, 7))
    with pytest.raises(SpecError, match="one reference per seed"):
        judge_method("npo", [replace(forget(0.5), reference=columns([0.5] * 4))])


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from([3, 5]))
def test_relabelling_seeds_or_examples_does_not_change_the_verdict(seed: int, seeds: int) -> None:
    generator = np.random.default_rng(seed)

    def draw() -> list[np.ndarray]:
        return list((generator.random((seeds, 30)) < generator.random()).astype(float))

    def relabelled(lists: list[np.ndarray]) -> list[np.ndarray]:
        return [lists[s][order] for s in swap]

    o, r, m, after = draw(), draw(), draw(), (draw(), draw())
    swap, order, names = generator.permutation(seeds), generator.permutation(30), generator.permutation(1000)[:30]
    entry = Quantity("recitation", "forget", "knowledge", True, [np.arange(30)], o, r, m, {"relearn": after})
    again = Quantity(
        "recitation",
        "forget",
        "knowledge",
        True,
        [names[order]],
        relabelled(o),
        relabelled(r),
        relabelled(m),
        {"relearn": (relabelled(after[0]), relabelled(after[1]))},
    )
    before = judge_method("npo", [entry, utility(seeds=seeds)])
    later = judge_method("npo", [again, utility(seeds=seeds)])
    assert later.flags == before.flags
    for old, new in zip(before.audits, later.audits, strict=True):
        assert (new.low, new.high, new.power) == (pytest.approx(old.low), pytest.approx(old.high), old.power)
