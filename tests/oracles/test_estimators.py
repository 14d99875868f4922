"""Estimators against closed forms, enumeration, the laws they must draw from, PyTorch and the package of ReinMax."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from expunge.base.errors import SpecError
from expunge.numerics._draws import categorical, conditional_gumbel
from expunge.numerics.estimator_diagnosis import diagnose_estimator, exact_gradient
from expunge.numerics.estimators import (
    ESTIMATORS,
    STGS,
    DecoupledST,
    DecoupledSTGS,
    Estimator,
    Exact,
    GumbelRao,
    IdentityST,
    Pathwise,
    ReinforceLOO,
    ReinMax,
    SoftmaxST,
    estimator,
)

EXACT = {"rtol": 1e-12, "atol": 1e-13}
"""Sums of a few products in float64."""
DRAWS = 40_000
SIGNIFICANCE = 1e-4
"""Of each statistical test; seeds are fixed, so that a test passes always or never."""
LOGITS = torch.tensor([[0.3, -1.2, 0.8, 0.1], [2.0, 0.0, -0.5, 0.4]], dtype=torch.float64)
PATHWISE: list[Pathwise] = [
    IdentityST(0.5),
    SoftmaxST(2.0),
    STGS(0.5),
    DecoupledSTGS(0.5, 2.0),
    DecoupledST(2.0, 0.5),
    GumbelRao(2.0, 0.7, 3),
    ReinMax(0.5, 1.5),
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def jacobian(p: Tensor) -> Tensor:
    return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)


def named(choice: Estimator) -> str:
    return choice.name


def quadratic(choices: int = 2, categories: int = 4, seed: int = 3) -> Callable[[Tensor], Tensor]:
    """A loss `[..., N, C]` to `[...]` that no choice enters alone."""
    weights = torch.randn(choices * categories, choices * categories, dtype=torch.float64, generator=generator(seed))
    aims = torch.randn(choices * categories, dtype=torch.float64, generator=generator(seed + 1))
    return lambda z: ((z.flatten(-2) @ weights - aims).square()).sum(-1)


def by_hand(logits: Tensor, loss: Callable[[Tensor], Tensor], temperature: float) -> Tensor:
    """The mean loss in plain Python, state by state."""
    p, total = torch.softmax(logits / temperature, -1), torch.zeros((), dtype=torch.float64)
    for state in itertools.product(range(logits.shape[1]), repeat=logits.shape[0]):
        z, weight = torch.zeros_like(logits), 1.0
        for row, chosen in enumerate(state):
            z[row, chosen] = 1
            weight = weight * float(p[row, chosen])
        total += weight * loss(z)
    return total


def closed_form(choice: Pathwise, z: Tensor, above: Tensor, draws: torch.Generator) -> Tensor:
    """The gradient by the formulas of the papers, with the estimator's own noise."""
    scaled = LOGITS / choice.forward
    if isinstance(choice, IdentityST):
        return above
    if isinstance(choice, SoftmaxST):
        matrix = jacobian(scaled.softmax(-1)) / choice.forward
    elif isinstance(choice, DecoupledST):
        matrix = jacobian((LOGITS / choice.backward).softmax(-1)) / choice.backward
    elif isinstance(choice, STGS | DecoupledSTGS):
        noise = -torch.empty_like(LOGITS).exponential_(generator=draws).log()
        backward = choice.backward if isinstance(choice, DecoupledSTGS) else choice.forward
        matrix = jacobian((LOGITS / backward + noise).softmax(-1)) / backward
    elif isinstance(choice, GumbelRao):
        hard = categorical(scaled, draws)
        relaxed = (conditional_gumbel(scaled, hard, choice.draws, draws) / choice.temperature).softmax(-1)
        matrix = jacobian(relaxed).mean(0) / choice.temperature / choice.forward
    else:
        middle = ((scaled / choice.temperature).softmax(-1) + z) / 2
        matrix = (2 * jacobian(middle) - jacobian(scaled.softmax(-1)) / 2) / choice.forward
    return torch.einsum("nij,nj->ni", matrix, above)


@pytest.mark.parametrize("choice", PATHWISE, ids=named)
def test_autograd_is_the_closed_form(choice: Pathwise) -> None:
    above = torch.randn(LOGITS.shape, dtype=torch.float64, generator=generator(9))
    leaf = LOGITS.clone().requires_grad_()
    z = choice(leaf, generator(1))
    (found,) = torch.autograd.grad((z * above).sum(), leaf)
    assert torch.equal(z.sum(-1), torch.ones(2, dtype=torch.float64)) and ((z == 0) | (z == 1)).all()
    torch.testing.assert_close(found, closed_form(choice, z.detach(), above, generator(1)), **EXACT)


@pytest.mark.parametrize("choice", PATHWISE, ids=named)
def test_the_law_of_the_forward_pass(choice: Pathwise) -> None:
    """Chi-squared over the four categories of each row; a sample that ignores the temperature would fail."""
    many = LOGITS.expand(DRAWS, 2, 4)
    counts = choice(many, generator(2)).detach().sum(0)
    for row, logits in zip(counts, LOGITS, strict=True):
        assert stats.chisquare(row, DRAWS * (logits / choice.forward).softmax(-1)).pvalue > SIGNIFICANCE
        assert stats.chisquare(row, DRAWS * logits.softmax(-1)).pvalue < SIGNIFICANCE
    ones = choice.bernoulli(LOGITS[0].expand(DRAWS, 4), generator(3)).detach().sum(0)
    for count, logit in zip(ones, LOGITS[0], strict=True):
        p = float(torch.sigmoid(logit / choice.forward))
        assert stats.binomtest(int(count), DRAWS, p).pvalue > SIGNIFICANCE


def test_scaling_after_the_noise_has_another_law() -> None:
    """What the chi-squared test is for: PyTorch's own function has the same law at every temperature."""
    torch.manual_seed(0)
    counts = F.gumbel_softmax(LOGITS[:1].expand(DRAWS, 4), tau=0.5, hard=True).sum(0)
    assert stats.chisquare(counts, DRAWS * (LOGITS[0] / 0.5).softmax(-1)).pvalue < SIGNIFICANCE
    assert stats.chisquare(counts, DRAWS * LOGITS[0].softmax(-1)).pvalue > SIGNIFICANCE


def test_bernoulli_by_the_formula_of_two_temperatures() -> None:
    leaf = LOGITS.clone().requires_grad_()
    z = DecoupledST(2.0, 0.5).bernoulli(leaf, generator(4))
    above = torch.randn(LOGITS.shape, dtype=torch.float64, generator=generator(5))
    (found,) = torch.autograd.grad((z * above).sum(), leaf)
    s = torch.sigmoid(LOGITS / 0.5)
    torch.testing.assert_close(found, s * (1 - s) / 0.5 * above, **EXACT)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_enumeration_against_finite_differences(temperature: float) -> None:
    loss = quadratic()
    value = Exact(temperature).expected(LOGITS, loss)
    torch.testing.assert_close(value, by_hand(LOGITS, loss, temperature), **EXACT)
    found, step = exact_gradient(LOGITS, loss, Exact(temperature)), 1e-5
    for place in itertools.product(range(2), range(4)):
        bump = torch.zeros_like(LOGITS)
        bump[place] = step
        slope = (by_hand(LOGITS + bump, loss, temperature) - by_hand(LOGITS - bump, loss, temperature)) / (2 * step)
        # A central difference: its error is the third derivative times step^2, and rounding over step.
        assert float(found[place]) == pytest.approx(float(slope), rel=1e-6, abs=1e-8)


def test_exact_for_batches_and_bernoulli() -> None:
    loss = quadratic()
    batch = torch.stack([LOGITS, 2 * LOGITS, -LOGITS])
    each = torch.stack([Exact().expected(row, loss) for row in batch])
    torch.testing.assert_close(Exact().expected(batch, loss), each, **EXACT)
    bits = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    s = torch.sigmoid(bits / 2)
    found = exact_gradient(bits, lambda z: z @ weights, Exact(2.0), binary=True)
    torch.testing.assert_close(found, weights * s * (1 - s) / 2, **EXACT)


@pytest.mark.parametrize("choice", [ReinforceLOO(2.0, 2), ReinforceLOO(0.5, 5)], ids=str)
def test_the_score_function_has_no_bias(choice: ReinforceLOO) -> None:
    """Every entry of the mean within its own error, at a level that holds for all of them."""
    loss, samples = quadratic(), 20_000
    leaf = LOGITS.expand(samples, 2, 4).clone().requires_grad_()
    (found,) = torch.autograd.grad(choice.expected(leaf, loss, generator(6)).sum(), leaf)
    errors = found.std(0) / math.sqrt(samples)
    z = (found.mean(0) - exact_gradient(LOGITS, loss, choice)) / errors
    assert z.abs().max() < stats.norm.isf(SIGNIFICANCE / 16)


def test_the_score_function_also_trains_what_comes_after() -> None:
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    loss = quadratic()
    value = ReinforceLOO(draws=3).expected(LOGITS, lambda z: scale * loss(z), generator(7))
    (found,) = torch.autograd.grad(value, scale)
    assert float(found) == pytest.approx(float(value.detach()), rel=1e-12)


def test_gumbel_rao_is_the_mean_of_the_common_estimator() -> None:
    """PyTorch's straight-through Gumbel-softmax has the same mean and more variance."""
    loss, samples = quadratic(), 20_000
    leaf = LOGITS.expand(samples, 2, 4).clone().requires_grad_()
    torch.manual_seed(1)
    (common,) = torch.autograd.grad(loss(F.gumbel_softmax(leaf, tau=0.7, hard=True)).sum(), leaf)
    (ours,) = torch.autograd.grad(loss(GumbelRao(1.0, 0.7, 8)(leaf, generator(8))).sum(), leaf)
    errors = torch.sqrt((common.var(0) + ours.var(0)) / samples)
    assert ((common.mean(0) - ours.mean(0)) / errors).abs().max() < stats.norm.isf(SIGNIFICANCE / 16)
    assert ours.var(0).sum() < 0.9 * common.var(0).sum()


def test_conditional_noise_keeps_the_choice_and_the_law() -> None:
    """Given the choice its category is the largest; over all choices each entry is a Gumbel variable again."""
    logits = LOGITS[:1].expand(DRAWS, 4).contiguous()
    hard = categorical(logits, generator(10))
    noisy = conditional_gumbel(logits, hard, 1, generator(11))[0]
    assert torch.equal(noisy.argmax(-1), hard.argmax(-1))
    noise = noisy - torch.log_softmax(logits, -1)
    for column in noise.T:
        assert stats.kstest(column.numpy(), "gumbel_r").pvalue > SIGNIFICANCE


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_reinmax_against_its_package(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the same choices, the same gradient."""
    theirs = pytest.importorskip("reinmax", reason="pip install reinmax")
    leaf = torch.randn(64, 5, dtype=torch.float64, generator=generator(12)).requires_grad_()
    above = torch.randn(64, 5, dtype=torch.float64, generator=generator(13))
    torch.manual_seed(14)
    chosen, _ = theirs.reinmax(leaf, temperature)
    (expected,) = torch.autograd.grad((chosen * above).sum(), leaf)
    monkeypatch.setattr("expunge.numerics.estimators.categorical", lambda *_: chosen.detach())
    (found,) = torch.autograd.grad((ReinMax(temperature=temperature)(leaf, generator()) * above).sum(), leaf)
    torch.testing.assert_close(found, expected, **EXACT)


def test_single_precision_stays_finite_and_one_hot() -> None:
    logits = (200 * torch.randn(2000, 3, generator=generator(15))).requires_grad_()
    for choice in PATHWISE:
        z = choice(logits, generator(16))
        (found,) = torch.autograd.grad((z * torch.arange(3.0)).sum(), logits)
        assert found.isfinite().all() and torch.equal(z.sum(-1), torch.ones(2000)) and z.dtype == torch.float32


def test_one_temperature_for_each_net() -> None:
    """Nets side by side have the gradients that they have alone."""
    forward, backward = (torch.tensor(t, dtype=torch.float64).view(2, 1, 1) for t in ([0.5, 2.0], [2.0, 1.0]))
    leaf = LOGITS.expand(2, 2, 4).clone().requires_grad_()
    choice = DecoupledST(forward, backward)
    z = choice(leaf, generator(17))
    (found,) = torch.autograd.grad((z * LOGITS).sum(), leaf)
    for place in range(2):
        p = (LOGITS / float(backward[place])).softmax(-1)
        alone = torch.einsum("nij,nj->ni", jacobian(p), LOGITS) / float(backward[place])
        torch.testing.assert_close(found[place], alone, **EXACT)


def test_diagnosis_of_the_exact_gradient_and_of_a_known_bias() -> None:
    loss = quadratic()
    exact = diagnose_estimator(Exact(2.0), LOGITS, loss, generator(18), samples=4)
    assert exact.bias < 1e-10 and exact.variance < 1e-20 and exact.cosine == pytest.approx(1) and exact.gap is None
    unbiased = diagnose_estimator(ReinforceLOO(2.0, 4), LOGITS, loss, generator(19), samples=2000)
    # Without correction the bias would be near the floor; with it, a normal deviate of the squared error is left.
    assert unbiased.bias < 2 * unbiased.floor and unbiased.cosine > 0.95 and unbiased.exact == exact.exact
    # For a linear loss version 2 draws nothing into its gradient: its bias is a difference of two closed forms.
    weights = torch.randn(LOGITS.shape, dtype=torch.float64, generator=generator(20))
    linear = diagnose_estimator(DecoupledST(2.0, 0.5), LOGITS, lambda z: (z * weights).sum((-2, -1)), generator(21))
    slow, quick = (torch.einsum("nij,nj->ni", jacobian((LOGITS / t).softmax(-1)), weights) / t for t in (2.0, 0.5))
    assert linear.bias == pytest.approx(float((quick - slow).norm()), rel=1e-9)
    assert linear.variance < 1e-12  # A difference of two sums, each near 500
    assert linear.gap == pytest.approx(0, abs=1e-12) and linear.exact == pytest.approx(float(slow.norm()))


def test_diagnosis_of_variance_and_gap_against_plain_samples() -> None:
    loss, choice, samples = quadratic(), DecoupledSTGS(1.5, 0.7), 3000
    found = diagnose_estimator(choice, LOGITS, loss, generator(22), samples=samples, chunk=700)
    leaf = LOGITS.expand(samples, 2, 4).clone().requires_grad_()
    (hard,) = torch.autograd.grad(loss(choice(leaf, generator(23))).sum(), leaf)
    (relaxed,) = torch.autograd.grad(loss(choice.sample(leaf, generator(23))[1]).sum(), leaf)
    assert found.variance == pytest.approx(float(hard.var(0).sum()), rel=0.1)
    gap = (relaxed - hard).flatten(1).norm(dim=1).mean() / hard.flatten(1).norm(dim=1).mean()
    assert found.gap == pytest.approx(float(gap), rel=0.1)
    bias = hard.mean(0) - exact_gradient(LOGITS, loss, choice)
    assert found.bias == pytest.approx(float(bias.norm()), abs=4 * found.floor)
    assert found.relative_bias == pytest.approx(found.bias / found.exact)


def test_diagnosis_of_bernoulli_choices() -> None:
    bits = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
    loss = quadratic(1, 3)
    found = diagnose_estimator(
        ReinforceLOO(draws=3), bits, lambda z: loss(z.unsqueeze(-2)), generator(24), samples=4000, binary=True
    )
    assert found.bias < 2 * found.floor and found.cosine > 0.95


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: DecoupledST(0.0), "decoupled_st, forward: found 0.0; allowed: a finite number above 0"),
    (lambda: DecoupledST(backward=-1.0), "decoupled_st, backward: found -1.0"),
    (lambda: IdentityST(math.nan), "identity, forward: found nan"),
    (lambda: STGS(math.inf), "st_gs, forward: found inf"),
    (lambda: SoftmaxST(torch.tensor([1.0, 0.0])), "softmax, forward"),
    (lambda: DecoupledSTGS("1"), "decoupled_st_gs, forward: found '1'"),  # type: ignore[arg-type]
    (lambda: GumbelRao(temperature=0.0), "gumbel_rao, temperature: found 0.0; allowed: a finite number above 0"),
    (lambda: GumbelRao(draws=0), "gumbel_rao, draws: found 0; allowed: a whole number of at least 1"),
    (lambda: ReinMax(temperature=0.99), "reinmax, temperature: found 0.99; allowed: a finite number of at least 1"),
    (lambda: ReinforceLOO(draws=1), "reinforce_loo, draws: found 1; allowed: a whole number of at least 2"),
    (lambda: STGS()(torch.zeros(3, 1), generator()), r"logits have shape \[3, 1\].*take bernoulli"),
    (lambda: STGS()(torch.zeros(3, 2, dtype=torch.int64), generator()), "type torch.int64"),
    (lambda: Exact().expected(torch.zeros(2, 1), quadratic()), "at least 2 categories"),
    (lambda: ReinforceLOO().expected(torch.zeros(2, 1), quadratic(), generator()), "at least 2 categories"),
    (lambda: Exact().expected(torch.zeros(17, 2), quadratic()), r"2\^17 combinations"),
    (lambda: diagnose_estimator(STGS(), LOGITS, quadratic(), generator(), samples=1), "samples = 1"),
    (lambda: estimator("decoupled"), "unknown estimator 'decoupled'.*did you mean 'decoupled_st'"),
    (lambda: estimator("st_gs", backward=1.0), "estimator st_gs: unknown setting 'backward'"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_what_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        call()


def test_every_estimator_has_its_name() -> None:
    assert {name: kind.name for name, kind in ESTIMATORS.items()} == {name: name for name in ESTIMATORS}
    assert estimator("decoupled_st", forward=0.5, backward=2.0) == DecoupledST(0.5, 2.0)
    assert {choice.name for choice in PATHWISE} == set(ESTIMATORS) - {"exact", "reinforce_loo"}
