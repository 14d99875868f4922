"""Bilinear forms against direct computation, in float64: modes, removal, collateral, factors, and gradient flow."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from expunge.base.errors import SpecError
from expunge.blocks.bilinear import BilinearLayer
from expunge.numerics import bilinear as forms

GENERATOR = torch.Generator().manual_seed(0)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def layer(inputs: int = 5, hidden: int = 7, outputs: int = 3, other: int | None = None, bias: bool = True):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = BilinearLayer(inputs, hidden, outputs, other=other, bias=bias).double()
        for p in made.parameters():
            torch.nn.init.normal_(p, std=0.5)
        return made


def one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)


@pytest.mark.parametrize("other", [None, 4])
def test_the_interaction_is_the_layer(other):
    made, g, x = layer(other=other), randn(3), randn(9, 5)
    y = None if other is None else randn(9, other)
    q = made.interaction(g)
    right = one(x if y is None else y)
    direct = torch.einsum("ni,ij,nj->n", one(x), q, right) + g @ made.out.bias
    assert torch.allclose(made(x, y) @ g, direct, atol=1e-12)
    assert torch.allclose(made.modes(g).matrix(), q, atol=1e-12)


@pytest.mark.parametrize("other", [None, 4])
def test_removed_modes_are_gone_and_the_rest_is_unchanged(other):
    made, g, x = layer(other=other), randn(3), randn(9, 5)
    y = None if other is None else randn(9, other)
    before, was = made.interaction(g), made(x, y).detach()
    removed = made.remove_modes(g, [0, 1])
    after = made.interaction(g)
    assert after.allclose(before - removed.matrix([0, 1]), atol=1e-12)
    for k in (0, 1):
        assert abs(removed.left[:, k] @ after @ removed.right[:, k]) < 1e-12
    aside = torch.linalg.svd(g[None]).Vh[1:]
    assert torch.allclose(made(x, y) @ aside.T, was @ aside.T, atol=1e-12)
    exact = made.refactor(hidden=60)
    assert exact < 1e-12 and made.interaction(g).allclose(after, atol=1e-10)


def test_collateral_of_a_grid_of_pairs_is_predicted():
    made, g, x, y = layer(other=4, bias=False), randn(3), randn(11, 5), randn(13, 4)
    before = made(x[:, None].expand(-1, 13, -1), y.expand(11, -1, -1)).detach()
    q = made.interaction()
    made.remove_modes(g, [1])
    made.refactor(hidden=30)
    after = made(x[:, None].expand(-1, 13, -1), y.expand(11, -1, -1)).detach()
    measured = float((after - before).square().sum(-1).mean())
    predicted = forms.predict_collateral(made.interaction() - q, x.T @ x / 11, y.T @ y / 13)
    assert predicted == pytest.approx(measured, rel=1e-10)


def test_the_oblique_projector_removes_the_subspace_at_the_least_cost():
    q, basis, samples = randn(6, 6), randn(6, 2), randn(50, 6) @ randn(6, 6)
    moments = samples.T @ samples / 50

    def cost(p: Tensor) -> float:
        return forms.predict_collateral(forms.remove_subspace(q, p, p) - q, moments, moments)

    oblique, plain = forms.projector(basis, moments), forms.projector(basis)
    for p in (oblique, plain):
        assert torch.allclose(p @ p, p) and (basis.T @ forms.remove_subspace(q, p, p) @ basis).abs().max() < 1e-10
    # The minimum over all matrices with this constraint, by the normal equations.
    rows = torch.einsum("ir,js->rsij", basis, basis).reshape(4, 36)
    metric = torch.kron(moments, moments)
    target = (basis.T @ q @ basis).reshape(4)
    least = target @ torch.linalg.solve(rows @ torch.linalg.solve(metric, rows.T), target)
    assert cost(oblique) == pytest.approx(float(least), rel=1e-8) and cost(plain) > 1.01 * cost(oblique)


@pytest.mark.parametrize("other", [None, 5])
def test_refactored_weights_do_not_depend_on_what_was_removed(other):
    """Two layers that know different things about the removed mode have the same refactored weights."""
    known, g = layer(other=other, outputs=1, bias=False), torch.ones(1, dtype=torch.float64)
    decomposed = known.modes(g)
    released = []
    for factor in (1.0, 1.7, 4.0):
        other_strength = layer(other=other, outputs=1, bias=False)
        extra = (factor - 1) * decomposed.strengths[0]
        other_strength.append(
            decomposed.left[:, :1].T, decomposed.right[:, :1].T, torch.full((1, 1), float(extra), dtype=torch.float64)
        )
        other_strength.remove_modes(g, [0])
        cancelled = other_strength.factors()[2]
        other_strength.refactor(hidden=7)
        released.append(other_strength)
        assert cancelled.shape[1] > 7
    forms_of = [made.interaction() for made in released]
    for made, form in zip(released[1:], forms_of[1:], strict=True):
        assert torch.allclose(form, forms_of[0], atol=1e-12)
        for ours, theirs in zip(made.factors(), released[0].factors(), strict=True):
            assert torch.allclose(ours.abs(), theirs.abs(), atol=1e-9)


def test_units_that_only_cancel_show_what_they_cancel():
    made, g = layer(outputs=1), torch.ones(1, dtype=torch.float64)
    removed = made.remove_modes(g, [0])
    left, right, out = made.factors()
    recovered = -(left[-1:].T * out[:, -1:]) @ right[-1:]
    assert made.cancelling == 1 and torch.allclose(recovered, removed.matrix([0]))


def test_alternating_least_squares_beats_truncation():
    made = layer(inputs=8, hidden=20, outputs=4)
    form = made.interaction()
    few = forms.refactor(form, 12, shared=True)
    again = forms.interaction(few.left, few.right, few.out)
    again = (again + again.mT) / 2
    assert float((again - form).norm() / form.norm()) == pytest.approx(few.residual)
    kept = sorted((float(v) for q in form for v in torch.linalg.eigvalsh(q).square()), reverse=True)[:24]
    truncated = math.sqrt(1 - sum(kept) / float(form.square().sum()))
    assert few.residual < 0.8 * truncated
    assert forms.refactor(form, 20, shared=True).residual < 0.5 * few.residual


@pytest.mark.parametrize(
    ("chosen", "finding"),
    [([0], "plane"), ([1], "plane"), ([9], "mode 9"), ([-1], "mode -1"), ([], r"\[\]"), ([2, 2], r"\[2, 2\]")],
)
def test_modes_that_are_not_defined_are_refused(chosen, finding):
    turned = torch.linalg.qr(randn(4, 4)).Q
    form = turned @ torch.diag(torch.tensor([3.0, 3.0, 1.0, 0.5], dtype=torch.float64)) @ turned.T
    with pytest.raises(SpecError, match=finding):
        forms.remove_modes(form, chosen, shared=True)
    whole, _ = forms.remove_modes(form, [0, 1], shared=True)
    assert float(whole.norm()) == pytest.approx(math.hypot(1.0, 0.5))


def test_a_basis_wider_than_the_input_is_refused():
    with pytest.raises(SpecError, match="5 columns of width 4"):
        forms.projector(randn(4, 5))
    with pytest.raises(SpecError, match="not independent"):
        forms.projector(torch.ones(4, 2, dtype=torch.float64))


def flow(strengths: list[float], w: Tensor, v: Tensor, times: list[float]) -> list[tuple[Tensor, Tensor]]:
    """Gradient flow of |Q* - sum w_k v_k'|^2 / 2 with autograd's gradients."""
    target, shape = torch.diag(torch.tensor(strengths, dtype=torch.float64)), w.shape

    def velocity(_: float, state: np.ndarray) -> np.ndarray:
        a, b = (torch.tensor(part.reshape(shape), requires_grad=True) for part in np.split(state, 2))
        loss = (target - forms.interaction(a, b, torch.ones(1, len(a), dtype=torch.float64))[0]).square().sum() / 2
        return -np.concatenate([g.flatten().numpy() for g in torch.autograd.grad(loss, (a, b))])

    start = np.concatenate([w.flatten().numpy(), v.flatten().numpy()])
    solved = solve_ivp(velocity, (0, times[-1]), start, "DOP853", times, rtol=1e-10, atol=1e-13)
    return [tuple(torch.tensor(p.reshape(shape)) for p in np.split(s, 2)) for s in solved.y.T]


def test_gradient_flow_keeps_its_invariants():
    w, v = 0.3 * randn(6, 3), 0.3 * randn(6, 3)
    for a, b in flow([3.0, 2.0, 1.0], w, v, [0.5, 2.0]):
        assert torch.allclose(a.square().sum(1) - b.square().sum(1), w.square().sum(1) - v.square().sum(1), atol=1e-8)


def test_aligned_modes_do_not_mix_and_grow_by_the_logistic_law():
    strengths, first, times = [3.0, 2.0, 1.0], 1e-3, [0.5, 1.0, 1.5, 2.5]
    start = math.sqrt(first) * torch.eye(3, dtype=torch.float64)
    for t, (a, b) in zip(times, flow(strengths, start, start, times), strict=True):
        q = a.T @ b
        law = [s / (1 + (s / first - 1) * math.exp(-2 * s * t)) for s in strengths]
        assert torch.allclose(q.diagonal(), torch.tensor(law, dtype=torch.float64), rtol=1e-6)
        assert (q - torch.diag(q.diagonal())).abs().max() < 1e-12
