"""What is recommended: the curvature behind the limit against dense matrices, the plan against every other one tried."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from _dense import curvatures, of_hessians
from _toy import classes, gpt, knowing, linear, net, tokens

from expunge.base.errors import MissingError, SpecError
from expunge.core.case import Case
from expunge.core.problem import Problem
from expunge.diagnostics import recommendation as what
from expunge.diagnostics import stability_limit
from expunge.diagnostics.recommendation import Recommendation, curvature_of_logits
from expunge.evidence.estimate import Estimate
from expunge.numerics.linearised import Draw, Update
from expunge.numerics.stability import mean_square_limit

ALL = Recommendation(epochs=1000.0, batch_size=6)


def case(model: Any = None, cscore: float | None = None) -> Case:
    problem = classes()
    if cscore is not None:
        scores = torch.full((len(problem.data),), cscore, dtype=torch.float64)
        problem = replace(problem, data=replace(problem.data, cscore=scores))
    return Case(0, problem, model or knowing(net(), problem))


def sampled(case: Case) -> Any:
    return ALL.look(case, torch.Generator().manual_seed(0))


def limit_of(found: Any, one: Case) -> float:
    return ALL.limit(found, one.problem, torch.Generator().manual_seed(0)).value


def test_the_limit_is_that_of_dense_curvatures() -> None:
    one = case()
    problem, found = one.problem, sampled(one)
    order = torch.cat([problem.retain, problem.forget])
    hessians = curvatures(one.original, problem, order)
    gram = curvature_of_logits(found.gram, found.logits)
    # The sample is in another order; the spectrum of all columns is the same.
    true = torch.linalg.eigvalsh(hessians.sum(0))[-len(gram) :]
    torch.testing.assert_close(torch.linalg.eigvalsh(gram)[-len(true) :], true, rtol=1e-8, atol=1e-10)
    plan = Update(1.0, 0.0, Draw(18, 6), Draw(6, 6), ALL.momentum)
    dense = mean_square_limit(of_hessians(hessians, 18), plan)
    # Flat directions are left out, which cannot make the limit smaller.
    assert dense * (1 - 1e-6) <= limit_of(found, one) < 1.1 * dense


def test_the_weakest_ascent_that_gets_there_is_chosen() -> None:
    one = case()
    found = sampled(one)
    limit = limit_of(found, one)
    chosen = ALL.chosen(found, one.problem, limit)
    assert chosen.learning_rate == pytest.approx(what.SHARE * limit)
    soon = what.SHARE * ALL.steps
    assert chosen.steps <= soon
    for ascent_weight in what.MIXES:
        steps, damage = ALL.predicted(found, one.problem, chosen.learning_rate, ascent_weight)
        assert (
            steps > soon
            if ascent_weight < chosen.ascent_weight
            else ascent_weight > chosen.ascent_weight or (steps, damage) == chosen[2:]
        )


def test_what_is_said_is_what_was_found() -> None:
    one = case(cscore=0.2)
    found = ALL(one, 0)
    text = ALL.summary(found)
    assert f"alpha = {1 - found[what.MIX].value:g};" in text and f"{found[what.STEPS].value:,.0f} steps" in text
    assert found[what.PASSES].value == math.ceil(found[what.STEPS].value / 3)  # 18 retained, batches of 6
    assert "noisy_distillation" in text and "known by heart" in text
    assert found[what.BY_HEART].value == pytest.approx(1.0 - 0.2, abs=0.35)
    assert "retained" not in text and what.DAMAGE in found
    assert repr(found) == repr(ALL(one, 0))


def test_where_little_is_known_by_heart_the_cheapest_will_do() -> None:
    estimate = Estimate(0.02, 0.0, 0.05, 9, "share", "reference")
    found = ALL(case(), 0)
    assert (
        "ship no C-scores" in ALL.summary(found)
        and "noisy_distillation" in ALL.summary(found)
        and what.BY_HEART not in found
    )
    text = ALL.summary(found | {what.BY_HEART: estimate})
    assert "finetune" in text and "membership" in text
    assert "noisy_distillation" in ALL.summary(found | {what.BY_HEART: replace(estimate, high=0.2)})


def test_of_an_original_that_knows_little_it_warns() -> None:
    problem = classes()
    model = net()
    with torch.no_grad():
        model[-1].weight.mul_(0.01)
        model[-1].bias.copy_(torch.tensor([0.0, 0.0, 5.0]))  # one class for everything
    found = ALL(Case(0, problem, model), 0)
    shares = {name: (problem.data.targets[ids] == 2).double().mean() for name, ids in known_sets(problem).items()}
    for name, share in shares.items():
        assert found[what.KNOWN[name]].value == pytest.approx(float(share))
    assert "knows only 33 % of the forget set and 33 % of the retain set" in ALL.summary(found)
    well = Estimate(0.9, 0.8, 1.0, 9, "share", "reference")
    for name in what.KNOWN:
        others = {label: well for key, label in what.KNOWN.items() if key != name}
        assert "knows only" in ALL.summary(found | others)
    assert "knows only" not in ALL.summary(found | dict.fromkeys(what.KNOWN.values(), well))


def known_sets(problem: Problem) -> dict[str, torch.Tensor]:
    return {"forget": problem.forget, "retain": problem.retain}


def test_its_limit_is_not_named_as_another_of_stability_limit() -> None:
    assert what.LIMIT not in (stability_limit.RETAIN_SQUARE, stability_limit.RETAIN_MEAN)


def test_where_nothing_gets_there_it_says_so() -> None:
    hurried = replace(ALL, steps=1)
    found = hurried(case(), 0)
    assert "do not forget soon" in hurried.summary(found) and found[what.MIX].value == max(what.MIXES)


def test_what_it_cannot_do_is_said() -> None:
    with pytest.raises(MissingError, match="vocabulary"):
        ALL(Case(0, tokens(), gpt()), 0)
    with pytest.raises(SpecError, match="no parameter takes a gradient"):
        ALL(case(linear().requires_grad_(False)), 0)
