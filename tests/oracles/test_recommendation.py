"""What is recommended: the curvature behind the limit against dense matrices, the plan against every other one tried."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from _dense import curvatures
from _toy import classes, gpt, knowing, linear, net, tokens

from expunge.base.errors import MissingError, SpecError
from expunge.core.case import Case
from expunge.evidence.estimate import Estimate
from expunge.numerics.linearised import Draw, Update, of_hessians
from expunge.numerics.stability import mean_square_limit
from expunge.probes import recommendation as what
from expunge.probes.recommendation import Recommendation, curvature_of_logits

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
    for mix in what.MIXES:
        steps, damage = ALL.foretold(found, one.problem, chosen.learning_rate, mix)
        assert steps > soon if mix < chosen.mix else mix > chosen.mix or (steps, damage) == chosen[2:]


def test_what_is_said_is_what_was_found() -> None:
    one = case(cscore=0.2)
    found = ALL(one, 0)
    text = ALL.told(found)
    assert f"alpha = {1 - found[what.MIX].value:g};" in text and f"{found[what.STEPS].value:,.0f} steps" in text
    assert found[what.PASSES].value == math.ceil(found[what.STEPS].value / 3)  # 18 retained, batches of 6
    assert "noisy_distillation" in text and "known by heart" in text
    assert found[what.BY_HEART].value == pytest.approx(1.0 - 0.2, abs=0.35)
    assert repr(found) == repr(ALL(one, 0))


def test_where_little_is_known_by_heart_the_cheapest_will_do() -> None:
    estimate = Estimate(0.02, 0.0, 0.05, 9, "share", "reference")
    found = ALL(case(), 0)
    assert (
        "ship no C-scores" in ALL.told(found) and "noisy_distillation" in ALL.told(found) and what.BY_HEART not in found
    )
    text = ALL.told(found | {what.BY_HEART: estimate})
    assert "finetune" in text and "membership" in text
    assert "noisy_distillation" in ALL.told(found | {what.BY_HEART: replace(estimate, high=0.2)})


def test_where_nothing_gets_there_it_says_so() -> None:
    hurried = replace(ALL, steps=1)
    found = hurried(case(), 0)
    assert "do not get there soon" in hurried.told(found) and found[what.MIX].value == max(what.MIXES)


def test_what_it_cannot_do_is_said() -> None:
    with pytest.raises(MissingError, match="vocabulary"):
        ALL(Case(0, tokens(), gpt()), 0)
    with pytest.raises(SpecError, match="no parameter takes a gradient"):
        ALL(case(linear().requires_grad_(False)), 0)
