"""Steps that a plan is predicted to take against training itself, and what the diagnostic costs and refuses."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from _toy import classes, cross_entropy, gpt, knowing, linear, net, tokens
from torch import nn

from expunge.base.errors import MissingError, RunError, SpecError
from expunge.core.case import Case
from expunge.core.modules import state_digest
from expunge.diagnostics.hardness import DAMAGE, HARDNESS, PREDICTED, Calibration, Hardness
from expunge.evidence.estimate import Estimate
from expunge.train.evaluation import known_share

ALL = Hardness(learning_rate=0.05, ascent_weight=0.6, epochs=1000.0)


def case(model: nn.Module) -> Case:
    return Case(0, classes(), model)


def trained_away(model: nn.Module, diagnostic: Hardness) -> tuple[int, float]:
    """Steps of the plan in whole batches until half of what is known is gone, and the retained share lost by then."""
    problem, student = classes(), copy.deepcopy(model)
    start = known_share(student, problem, problem.forget), known_share(student, problem, problem.retain)
    optimizer = torch.optim.SGD(student.parameters(), lr=diagnostic.learning_rate, momentum=diagnostic.momentum)
    for step in range(diagnostic.steps):
        if known_share(student, problem, problem.forget) <= 0.5 * start[0]:
            return step, start[1] - known_share(student, problem, problem.retain)
        optimizer.zero_grad()
        kept, gone = (cross_entropy(problem, student, ids) for ids in (problem.retain, problem.forget))
        ((1 - diagnostic.ascent_weight) * kept - diagnostic.ascent_weight * gone).backward()
        optimizer.step()
    return diagnostic.steps, math.nan


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_softmax_regression_takes_as_many_steps_as_foretold(momentum: float) -> None:
    model, diagnostic = knowing(linear(), classes()), replace(ALL, momentum=momentum)
    steps, lost = trained_away(model, diagnostic)
    assert 3 < steps < diagnostic.steps
    found = diagnostic(case(model), 0)
    # The whole set: no error of sampling.
    assert found[PREDICTED].value == found[PREDICTED].low == found[PREDICTED].high == pytest.approx(steps)
    assert found[DAMAGE].value == pytest.approx(max(lost, 0.0))


def test_of_a_network_it_is_near() -> None:
    model, diagnostic = knowing(net(), classes()), replace(ALL, momentum=0.0)
    steps, _ = trained_away(model, diagnostic)
    assert steps / 2 < diagnostic(case(model), 0)[PREDICTED].value < 2 * steps


def test_what_is_shown_is_calibrated() -> None:
    found = Calibration.load()
    shown = ALL(case(knowing(linear(), classes())), 0)
    expected = math.exp(found.intercept + found.slope * math.log(shown[PREDICTED].value))
    assert shown[HARDNESS].value == pytest.approx(expected)
    assert shown[HARDNESS].low < expected < shown[HARDNESS].high
    text = ALL.summary(shown)
    assert f"{expected:,.0f} steps" in text and "retained" not in text and DAMAGE in shown


def test_a_set_that_does_not_go_has_no_number() -> None:
    still = replace(ALL, ascent_weight=0.0, steps=20)
    found = still(case(knowing(linear(), classes())), 0)
    for what in (HARDNESS, PREDICTED):
        assert found[what].value == math.inf and math.isnan(found[what].low)
    assert "within 20 steps" in still.summary(found) and "raise" in still.summary(found)


def test_nothing_is_foretold_beyond_the_steps_that_are_followed() -> None:
    def followed(value: float, low: float, high: float) -> tuple[float, float, float]:
        logs = Estimate(*(math.log(end) for end in (value, low, high)), 9, "log steps", "reference")
        found = replace(ALL, steps=1000)._followed(logs)
        return found.value, found.low, found.high

    assert followed(20, 10, 30) == pytest.approx((20, 10, 30))
    assert followed(900, 700, 39_477) == pytest.approx((900, 700, math.inf))
    assert followed(900, 1200, 39_477) == pytest.approx((900, 1000, math.inf))
    assert followed(1000, 1200, 39_477)[0] == math.inf
    assert math.isnan(ALL._followed(Estimate(1.0, math.nan, math.nan, 2, "log steps", "reference")).high)


def test_a_part_of_the_sets_has_an_interval_and_nothing_is_changed() -> None:
    model = knowing(net(), classes())
    before, state = state_digest(model), torch.get_rng_state()
    some = replace(ALL, retain=12, forget=4)
    first, again, other = (repr(some(case(model), seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert state_digest(model) == before and torch.equal(torch.get_rng_state(), state)
    found = some(case(model), 0)[PREDICTED]
    assert found.low < found.high


@pytest.mark.parametrize("epochs", [2.0, 10.0])
def test_no_more_gradients_than_the_budget(epochs: float) -> None:
    model, passes = net(), list[int]()
    model.register_forward_hook(lambda _, inputs, __: passes.append(len(inputs[0]) if torch.is_grad_enabled() else 0))
    replace(ALL, epochs=epochs)(case(model), 0)
    assert 0.2 * epochs * 24 < sum(passes) <= epochs * 24


def test_what_it_cannot_do_is_said() -> None:
    with pytest.raises(MissingError, match="hardness: needs one gradient per logit"):
        ALL(Case(0, tokens(), gpt()), 0)
    with pytest.raises(SpecError, match="no parameter takes a gradient"):
        ALL(case(linear().requires_grad_(False)), 0)
    lost = linear()
    with torch.no_grad():
        lost[0].weight[0, 0] = math.nan
    with pytest.raises(RunError, match="not finite"):
        ALL(case(lost), 0)
    with pytest.raises(SpecError, match="epochs"):
        replace(ALL, epochs=0.1)(case(linear()), 0)
