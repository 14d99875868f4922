"""What diagnostics say of curvature against dense matrices and closed forms, their cost, and what they refuse."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from _dense import curvatures, gradient, of_hessians
from _spectra import seeded
from _toy import classes, cross_entropy, gpt, linear, net, tokens
from torch import Tensor, nn

from expunge.base.errors import RunError, SpecError
from expunge.core.case import Case
from expunge.core.contracts import Diagnostic
from expunge.core.data import Data
from expunge.core.modules import state_digest
from expunge.core.problem import Problem
from expunge.diagnostics import coherence, sharpness, stability_limit
from expunge.diagnostics._sample import affordable, gram_cost
from expunge.diagnostics.coherence import Coherence
from expunge.diagnostics.sharpness import Sharpness, noise_scale
from expunge.diagnostics.stability_limit import StabilityLimit
from expunge.evidence.estimate import Estimate
from expunge.numerics.linearised import Draw, Update
from expunge.numerics.stability import growth_rate, mean_limit, mean_square_limit

ALL: dict[str, Any] = {"epochs": 1000.0}
DIAGNOSTICS = [Coherence(**ALL), StabilityLimit(**ALL), Sharpness(**ALL)]
NAMES = ["coherence", "stability_limit", "sharpness"]


def case_of(problem: Problem, model: nn.Module | None = None) -> Case:
    return Case(0, problem, model or (net() if problem.data.has_classes else gpt()))


def both(case: Case) -> Tensor:
    return curvatures(case.original, case.problem, torch.cat([case.problem.retain, case.problem.forget]))


def one_hot(count: int, forget: int, same: bool = False) -> Case:
    """Softmax regression without bias on inputs that share no weight, or all of them; two classes."""
    inputs = torch.ones(count, 1).double() if same else torch.eye(count).double()
    everything = torch.arange(count)
    data = Data(inputs, everything % 2, everything[:-1], everything[-1:], ("a", "b"))
    problem = Problem(data, everything[:forget], everything[forget:-1], data.test)
    torch.manual_seed(0)
    return Case(0, problem, nn.Linear(inputs.shape[1], 2, bias=False).double())


# Coherence.


def test_coherence_is_that_of_dense_curvatures():
    case = case_of(classes())
    found = Coherence(**ALL)(case, 0)
    hessians = both(case)
    s = torch.einsum("iab,jab->ij", hessians, hessians).sqrt()
    sharp = s.diagonal()
    n, a, b = 18, slice(18), slice(18, None)
    expected = {
        coherence.WITHIN_RETAIN: torch.linalg.eigvalsh(s[a, a])[-1] / sharp[a].max() / 18,
        coherence.WITHIN_FORGET: torch.linalg.eigvalsh(s[b, b])[-1] / sharp[b].max() / 6,
        coherence.BETWEEN: torch.linalg.svdvals(s[a, b])[0] / (sharp[a].max() * sharp[b].max() * 18 * 6).sqrt(),
        coherence.RETAIN_RANK: hessians[:n].mean(0).trace() ** 2 / hessians[:n].mean(0).square().sum(),
        coherence.FORGET_RANK: hessians[n:].mean(0).trace() ** 2 / hessians[n:].mean(0).square().sum(),
    }
    assert list(found) == list(expected)
    for what, value in expected.items():
        # Of the whole sets: no error of sampling.
        assert found[what].value == found[what].low == found[what].high == pytest.approx(float(value), rel=1e-9)


def test_examples_that_share_nothing_and_examples_that_share_all():
    """From a part of either set; what halves carry over to the whole is exact where all are equally sharp."""
    case = one_hot(41, 12)
    nn.init.zeros_(case.original.weight)
    found = Coherence(retain=9, forget=6, **ALL)(case, 0)
    values = [estimate.value for estimate in found.values()]
    assert values == pytest.approx([1 / 28, 1 / 12, 0, 28, 12], rel=1e-9, abs=1e-12)
    assert "largely on weights of its own" in Coherence().summary(found)
    same = one_hot(41, 12, same=True)
    nn.init.zeros_(same.original.weight)
    found = Coherence(retain=9, forget=6, **ALL)(same, 0)
    assert [estimate.value for estimate in found.values()] == pytest.approx([1, 1, 1, 1, 1])
    assert "much as each set does within itself" in Coherence().summary(found)


# Stability.


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_limits_and_rates_are_those_of_dense_curvatures(momentum: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stability_limit, "FLAT", 1e-12)
    case = case_of(classes())
    diagnostic = StabilityLimit(
        learning_rate=0.3, ascent_weight=0.2, momentum=momentum, batch_size=5, forget_batch_size=2, **ALL
    )
    found = diagnostic(case, 0)
    dense = of_hessians(both(case), 18)
    plan = Update(0.3, 0.2, Draw(18, 5), Draw(6, 2), momentum)
    top = float(torch.linalg.eigvalsh(both(case)[:18].mean(0))[-1])
    assert found[stability_limit.RETAIN_MEAN].value == pytest.approx(2 * (1 + momentum) / (0.8 * top), rel=1e-7)
    squared = mean_square_limit(dense, replace(plan, ascent_weight=0.0)) / 0.8
    assert found[stability_limit.RETAIN_SQUARE].value == pytest.approx(squared, rel=1e-6)
    assert squared < 0.99 * mean_limit(dense, replace(plan, ascent_weight=0.0)) / 0.8
    least = torch.linalg.eigvalsh(0.8 * both(case)[:18].mean(0) - 0.2 * both(case)[18:].mean(0))[0]
    trace = 1 + momentum - 0.3 * float(least)
    growth = (trace + math.sqrt(trace**2 - 4 * momentum)) / 2
    assert least < 0
    assert found[stability_limit.RATE_MEAN].value == pytest.approx(math.log(growth), rel=1e-7)
    assert found[stability_limit.RATE_SQUARE].value == pytest.approx(growth_rate(dense, plan), rel=1e-5)


@pytest.mark.parametrize("problem", [classes(), tokens()], ids=["classes", "tokens"])
def test_gradients_are_measured_in_those_of_the_models_own_labels(problem: Problem):
    case = case_of(problem)
    found = StabilityLimit(rows=60, **ALL)(case, 0)
    for what, ids in (
        (stability_limit.RETAIN_GRADIENT, problem.retain),
        (stability_limit.FORGET_GRADIENT, problem.forget),
    ):
        decisions = 1 if problem.data.has_classes else 5
        slopes = torch.stack([gradient(case.original, problem, int(place)) for place in ids]) * decisions**0.5
        own = curvatures(case.original, problem, ids).diagonal(dim1=1, dim2=2).sum()
        # Drawn labels, for tokens: 60 of them for each of 4 examples or more.
        tolerance = 1e-9 if problem.data.has_classes else 0.06
        assert found[what].value == pytest.approx(math.sqrt(float(slopes.square().sum() / own)), rel=tolerance)


def test_batches_are_no_larger_than_their_sets_as_in_training():
    plan = StabilityLimit().update(classes())
    assert (plan.retain, plan.forget) == (Draw(18, 18), Draw(6, 6))
    assert (plan.step, plan.ascent_weight, plan.momentum) == (2e-4, 0.05, 0.9)


@pytest.mark.parametrize(
    ("ascent_weight", "method", "there"),
    [
        (0.0, "finetune with sgd", "descent"),
        (1.0, "gradient_ascent with sgd", "leaves"),
        (0.25, "alpha = 0.75", "both"),
    ],
)
def test_the_plan_names_its_method_and_only_what_it_does(ascent_weight: float, method: str, there: str):
    diagnostic = StabilityLimit(ascent_weight=ascent_weight, **ALL)
    found = diagnostic(case_of(classes()), 0)
    assert (stability_limit.RETAIN_MEAN in found) == (there != "leaves")
    assert (stability_limit.RATE_SQUARE in found) == (there != "descent")
    told = diagnostic.summary(found)
    assert told.startswith("As ") and method in told
    assert ("descent on the retain set" in told) == (there != "leaves")
    assert ("the minimum" in told or "plan leaves" in told) == (there != "descent")


def told_of(limit: tuple[float, float, float], rate: tuple[float, float, float]) -> str:
    def one(value: float, low: float, high: float) -> Estimate:
        return Estimate(value, low, high, 9, "", "reference")

    found = {stability_limit.RETAIN_SQUARE: one(*limit), stability_limit.RATE_SQUARE: one(*rate)}
    left = {stability_limit.RETAIN_GRADIENT: one(0.1, 0, 1), stability_limit.FORGET_GRADIENT: one(0.3, 0, 1)}
    return StabilityLimit(learning_rate=0.1, momentum=0.5).summary(found | left)


def test_what_is_undecided_is_said_to_be():
    below, above = told_of((0.5, 0.3, 0.7), (0.1, 0.05, 0.15)), told_of((0.05, 0.03, 0.07), (-0.1, -0.2, -0.05))
    assert "is stable up to a step size of 0.5" in below and "tenfold in about 23 steps" in below
    assert "unstable above a step size of 0.05" in above and "stays at the minimum" in above
    unsure = told_of((0.1, 0.05, 0.2), (0.1, -0.05, 0.15))
    assert (
        "undecided whether descent on the retain set is stable" in unsure
        and "undecided whether the plan leaves the minimum" in unsure
    )
    assert "0.3 times" in unsure and "momentum 0.5 (the library's sgd has 0.9)" in unsure
    assert "undecided" in told_of((0.5, math.nan, math.nan), (0.1, math.nan, math.nan))


# Sharpness.


def test_eigenvalues_are_those_of_the_dense_hessian():
    case = case_of(classes())
    found = Sharpness(learning_rate=0.5, momentum=0.25, limit=50, tolerance=1e-9, **ALL)(case, 0)
    parameters = list(case.original.parameters())
    loss = cross_entropy(case.problem, case.original, case.problem.retain)
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, create_graph=True)])
    dense = torch.stack(
        [torch.cat([g.flatten() for g in torch.autograd.grad(s, parameters, retain_graph=True)]) for s in slope]
    )
    exact = torch.linalg.eigvalsh(dense).flip(0)
    for place, what in enumerate((sharpness.TOP, "eigenvalue 2", "eigenvalue 3")):
        assert found[what].value == pytest.approx(float(exact[place]), rel=1e-7)
        # All of the retain set: what is left is the error of Lanczos.
        assert found[what].half_width < 1e-6 * float(exact[0])
    assert found[sharpness.EDGE].value == pytest.approx(0.5 * float(exact[0]) / 2.5, rel=1e-7)


def test_a_share_of_a_step_size_is_not_negative():
    """An eigenvalue's interval may reach below 0, where every step size holds."""
    found = Sharpness(learning_rate=0.5, momentum=0.0)._eigenvalues([(39.0, 39.6)], 8)
    top, edge = found[sharpness.TOP], found[sharpness.EDGE]
    assert (top.low, top.high) == pytest.approx((-0.6, 78.6))
    assert (edge.value, edge.low, edge.high) == pytest.approx((39 / 4, 0.0, 78.6 / 4))


def test_the_noise_scale_is_that_of_single_gradients(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sharpness, "BATCHES", 18)
    case = case_of(classes())
    found = Sharpness(**ALL)(case, 0)[sharpness.NOISE]
    slopes = torch.stack([gradient(case.original, case.problem, int(place)) for place in case.problem.retain])
    spread = float(slopes.var(0).sum())
    # The whole set: its mean is the mean, whatever its parts scatter.
    assert found.value == pytest.approx(spread / float(slopes.mean(0).square().sum()), rel=1e-9)


def test_the_noise_scale_of_a_part_is_that_of_the_whole_on_average():
    """Gradients of a known mean and covariance: tr = 30, |mean|^2 = 4; 200 draws of 16 batches of 5."""
    mean, found = torch.zeros(30).double(), []
    mean[0] = 2
    for seed in range(200):
        batches = mean + torch.randn(16, 30, generator=seeded(seed)).double() / 5**0.5
        found.append(noise_scale(batches @ batches.T, 5, 1.0))
    inside = sum(one.low <= 7.5 <= one.high for one in found)
    assert 160 <= inside <= 198
    logs = torch.tensor([one.value for one in found]).log()
    assert float(logs.mean()) == pytest.approx(math.log(7.5), abs=0.05)


def test_no_signal_is_an_infinite_noise_scale():
    batches = torch.randn(6, 50, generator=seeded()).double()
    batches -= batches.mean(0)
    found = noise_scale(batches @ batches.T, 3, 1.0)
    assert found.value == math.inf and math.isnan(found.low)
    edge = Estimate(0.1, 0.05, 0.2, 9, "share", "lower")
    assert "cannot be distinguished from 0" in Sharpness().summary({sharpness.EDGE: edge, sharpness.NOISE: found})
    beyond = replace(edge, value=1.5, low=1.2, high=1.9)
    assert "damages" in Sharpness().summary({sharpness.EDGE: beyond, sharpness.NOISE: found})


# All of them.


@pytest.mark.parametrize("diagnostic", DIAGNOSTICS, ids=NAMES)
@pytest.mark.parametrize("problem", [classes(), tokens()], ids=["classes", "tokens"])
def test_the_same_seed_says_the_same_and_nothing_is_changed(diagnostic: Diagnostic, problem: Problem):
    case = case_of(problem)
    before, state = state_digest(case.original), torch.get_rng_state()
    some = replace(diagnostic, **({"retain": 8, "forget": 4} if hasattr(diagnostic, "forget") else {"retain": 8}))
    first, again, other = some(case, 0), some(case, 0), some(case, 1)
    assert first == again or repr(first) == repr(again)
    assert repr(first) != repr(other)
    assert state_digest(case.original) == before and torch.equal(torch.get_rng_state(), state)
    finite = [what for what, estimate in first.items() if math.isfinite(estimate.value)]
    assert set(first) - set(finite) <= {sharpness.NOISE}
    assert some.summary(first)


class Scaled(nn.Module):
    """A bare parameter, whose gradients have no product form."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.scale = net(), nn.Parameter(torch.ones(3).double())

    def forward(self, inputs: Tensor) -> Tensor:
        return self.body(inputs) * self.scale


@pytest.mark.parametrize("diagnostic", DIAGNOSTICS, ids=NAMES)
@pytest.mark.parametrize("model", [net(), Scaled()], ids=["products", "one by one"])
@pytest.mark.parametrize("epochs", [2.0, 10.0])
def test_no_more_gradients_than_the_budget(diagnostic: Diagnostic, model: nn.Module, epochs: float):
    """Every example of a pass that keeps its graph counts once, in a Hessian product twice."""
    model, passes = copy.deepcopy(model), list[int]()
    model.register_forward_hook(lambda _, inputs, __: passes.append(len(inputs[0]) if torch.is_grad_enabled() else 0))
    problem = classes()
    times = 2 if isinstance(diagnostic, Sharpness) else 1
    some = replace(diagnostic, epochs=epochs, **({"rows": 2} if times == 1 else {"limit": 4, "eigenvalues": 1}))
    some(case_of(problem, model), 0)
    spent = times * sum(passes)
    # Sharpness takes noise and gradients once each where twice is counted here.
    # Once for each model, three examples are compared with two copies of themselves; that counts for no budget.
    check = 9 if isinstance(model, Scaled) and times == 1 else 0
    assert 0.2 * epochs * 24 < spent <= epochs * 24 * (1.2 if times == 2 else 1) + check


def test_a_budget_cuts_the_larger_part_first():
    assert affordable((40, 6), 3, 1e6, products=True) == (40, 6)
    for products in (True, False):
        enough = [gram_cost(3 * count, products=products) for count in (14, 8)]
        assert affordable((40, 6), 3, enough[0], products=products) == (8, 6)
        assert affordable((40, 6), 3, enough[1], products=products) == (4, 4)
    # Two blocks in three passes; one by one, two more of each; and a block and two examples to compare.
    assert gram_cost(130, products=True) == 130 * 3 / 2 + 130
    assert gram_cost(130, products=False) == 130 * 9 / 2 + 130
    with pytest.raises(SpecError, match="epochs: allows 5 gradients, and one example of each set takes 14"):
        affordable((40, 6), 3, 5, products=True)


def test_what_has_no_product_form_is_named():
    for diagnostic in DIAGNOSTICS[:2]:
        found = diagnostic(case_of(classes(), Scaled()), 0)
        what, share = list(found.items())[-1]
        assert what == f"{coherence.ONE_BY_ONE} scale"
        assert share.value == pytest.approx(3 / (5 * 7 + 7 + 7 * 3 + 3 + 3))
        # The same numbers as where it does not move: the scale is frozen, and nothing is named.
        still = Scaled()
        still.scale.requires_grad_(False)
        assert coherence.ONE_BY_ONE not in " ".join(diagnostic(case_of(classes(), still), 0))


class Scale(nn.Module):
    """A weight in single precision."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.scale


class OnceOnly(nn.Module):
    """A function with a first derivative only."""

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, inputs: Tensor) -> Tensor:
            return 2 * inputs

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, slope: Tensor) -> Tensor:
            return 2 * slope

    def forward(self, inputs: Tensor) -> Tensor:
        return self.Double.apply(inputs)  # type: ignore[no-any-return,no-untyped-call]


@pytest.mark.parametrize("diagnostic", DIAGNOSTICS, ids=NAMES)
def test_bad_models_are_said(diagnostic: Diagnostic):
    frozen = linear().requires_grad_(False)
    with pytest.raises(SpecError, match=r"^original \(Sequential\): no parameter takes a gradient"):
        diagnostic(case_of(classes(), frozen), 0)
    lost = linear()
    with torch.no_grad():
        lost[0].weight[0, 0] = math.nan
    with pytest.raises(RunError, match=r"the loss of example \d+ is not finite"):
        diagnostic(case_of(classes(), lost), 0)
    mixed = nn.Sequential(net(), Scale())
    with pytest.raises(SpecError, match=r"original \(Sequential\)\.parameters"):
        diagnostic(case_of(classes(), mixed), 0)
    tiny = replace(diagnostic, epochs=0.1)
    with pytest.raises(SpecError, match="epochs"):
        tiny(case_of(classes()), 0)


def test_a_function_without_second_derivative_is_named_by_sharpness_only():
    model = nn.Sequential(nn.Linear(5, 7), OnceOnly(), nn.Linear(7, 3)).double()
    with pytest.raises(RunError, match=r"original \(Sequential\)\.1 \(OnceOnly\)"):
        DIAGNOSTICS[2](case_of(classes(), model), 0)
    assert DIAGNOSTICS[0](case_of(classes(), model), 0)


def test_no_forget_examples_are_refused_before_any_diagnostic():
    problem = classes()
    with pytest.raises(SpecError, match="the forget set is empty"):
        Problem(problem.data, problem.forget[:0], problem.retain, problem.test)


@pytest.mark.parametrize(
    "settings", [{"ascent_weight": 1.1}, {"momentum": 1.0}, {"learning_rate": 0.0}, {"batch_size": 0}]
)
def test_bad_settings_are_refused(settings: Mapping[str, Any]):
    with pytest.raises(SpecError, match=next(iter(settings))):
        StabilityLimit(**settings)
