"""Curvature products against dense matrices, difference quotients of the gradient, and closed forms."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from _nets import ARCHITECTURES, DENSE, EXACT, Batch, cut, flat_losses, losses, mean_loss, net
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from expunge.base.errors import RunError, SpecError
from expunge.numerics.linops import CurvatureOperator, bends, differentiable, gauss_newton, hessian

SIZES = (4, 1, 2)


def vectors(size: int, count: int = 2) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(1)).double()


def products(curvature: CurvatureOperator) -> tuple[Tensor, Tensor]:
    """Random vectors and their products, as rows."""
    found = vectors(curvature.size)
    return found, torch.stack([curvature(vector) for vector in found])


def as_function(model: nn.Module, value: Callable[[nn.Module], Tensor]) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The value as a function of one flat vector, and the vector at which the model is; a tied weight enters once."""
    named = dict(model.named_parameters())

    class Asked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self) -> Tensor:
            return value(self.inner)

    asked = Asked()

    def function(vector: Tensor) -> Tensor:
        pieces = vector.split([p.numel() for p in named.values()])
        weights = {f"inner.{k}": piece.view_as(p) for (k, p), piece in zip(named.items(), pieces, strict=True)}
        found: Tensor = functional_call(asked, weights, ())
        return found

    return function, torch.cat([p.detach().flatten() for p in named.values()])


@pytest.mark.parametrize("name", DENSE)
def test_hessian_products_are_those_of_the_dense_hessian(name: str):
    model, batch = net(name)
    function, at = as_function(model, lambda m: losses(m, batch).sum() / len(batch[0]))
    with sdpa_kernel(SDPBackend.MATH):
        dense = torch.autograd.functional.hessian(function, at)
    assert (dense - torch.diag(dense.diag())).abs().max() > 1e-3
    drawn, found = products(hessian(mean_loss, model, differentiable(model), cut(batch, *SIZES)))
    gradient, forms = bends(mean_loss, model, differentiable(model), batch, drawn)
    slopes = torch.autograd.grad(mean_loss(model, batch), differentiable(model))
    torch.testing.assert_close(gradient, torch.cat([slope.flatten() for slope in slopes]), **EXACT)
    torch.testing.assert_close(forms, ((drawn @ dense) * drawn).sum(1), **EXACT)
    torch.testing.assert_close(found, drawn @ dense, **EXACT)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_hessian_products_are_the_slope_of_the_gradient(name: str):
    model, batch = net(name)
    drawn, found = products(hessian(mean_loss, model, differentiable(model), cut(batch, *SIZES)))
    function, at = as_function(model, lambda m: losses(m, batch).mean())
    # The error of the quotient is of second order in the step, and rounding is divided by it.
    step = 1e-6

    def gradient(vector: Tensor) -> Tensor:
        vector = vector.requires_grad_()
        return torch.autograd.grad(function(vector), vector)[0]

    slopes = torch.stack([(gradient(at + step * v) - gradient(at - step * v)) / (2 * step) for v in drawn])
    torch.testing.assert_close(found, slopes, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gauss_newton_products_are_those_of_the_formula(name: str):
    """J^T (diag(p) - p p^T) J, weighted per token, from one backward pass per output."""
    model, batch = net(name)
    parameters = differentiable(model)
    outputs = model(batch[0]).flatten(0, -2)
    chances, weights = outputs.softmax(1).detach(), torch.ones(len(outputs), dtype=torch.float64)
    if name == "gpt":
        weights = torch.linspace(1, 2, batch[1].shape[1], dtype=torch.float64).repeat(len(batch[0]))
    curved = weights[:, None, None] * (torch.diag_embed(chances) - chances[:, :, None] * chances[:, None])
    rows = [torch.autograd.grad(o, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
            for o in outputs.flatten()]  # fmt: skip
    jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).unflatten(0, outputs.shape)
    dense = torch.einsum("ncp,ncd,ndq->pq", jacobian, curved, jacobian) / len(batch[0])
    found = products(gauss_newton_of(model, cut(batch, *SIZES)))
    torch.testing.assert_close(found[1], found[0] @ dense, **EXACT)


def gauss_newton_of(model: nn.Module, batches: list[Batch]) -> CurvatureOperator:
    return gauss_newton(
        lambda m, b: m(b[0]), lambda o, b: flat_losses(o, b[1]).mean(), model, differentiable(model), batches
    )


def test_for_squared_loss_of_a_linear_model_both_are_the_second_moment_of_the_inputs():
    model = nn.Linear(4, 1, bias=False).double()
    inputs, targets = torch.randn(9, 4).double(), torch.randn(9, 1).double()
    batches = cut((inputs, targets), 5, 3, 1)
    second = 2 * inputs.T @ inputs / 9
    for found in (
        hessian(lambda m, b: F.mse_loss(m(b[0]), b[1]), model, differentiable(model), batches),
        gauss_newton(lambda m, b: m(b[0]), lambda o, b: F.mse_loss(o, b[1]), model, differentiable(model), batches),
    ):
        torch.testing.assert_close(torch.stack([found(e) for e in torch.eye(4).double()]), second, **EXACT)


def test_a_mean_over_tokens_is_weighted_by_tokens():
    model = nn.Linear(3, 1, bias=False).double()
    full, half = torch.randn(4, 3).double(), torch.randn(2, 3).double()
    found = hessian(
        lambda m, b: m(b).square().mean(), model, differentiable(model), [full, half], lambda b: len(b) ** 2
    )
    expected = 2 * (16 * full.T @ full / 4 + 4 * half.T @ half / 2) / 20
    torch.testing.assert_close(torch.stack([found(e) for e in torch.eye(3).double()]), expected, **EXACT)


def test_single_precision_is_double_precision_up_to_its_rounding():
    model, batch = net("cnn_group")
    drawn, exact = products(hessian(mean_loss, model, differentiable(model), [batch]))
    single = model.float()
    found = hessian(mean_loss, single, differentiable(single), [(batch[0].float(), batch[1])])(drawn[0])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact[0], rtol=1e-3, atol=1e-5)


def test_products_leave_the_model_as_it_is_and_work_without_gradient_mode():
    model, batch = net("gpt")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    curvature = hessian(mean_loss, model, differentiable(model), [batch])
    first = curvature(vectors(curvature.size)[0])
    with torch.no_grad():
        assert torch.equal(curvature(vectors(curvature.size)[0]), first)
    assert not first.requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spare, self.used = nn.Linear(2, 2), nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.used(inputs)


def test_a_parameter_that_the_loss_does_not_depend_on_has_zero_rows():
    model, batch = Unused().double(), (torch.randn(5, 3).double(), torch.randint(0, 3, (5,)))
    curvature = hessian(mean_loss, model, differentiable(model), [batch])
    ggn = gauss_newton_of(model, [batch])
    for found in (curvature(vectors(18)[0]), ggn(vectors(18)[0])):
        assert torch.equal(found[:6], torch.zeros(6).double()) and (found[6:] != 0).all()
    some = hessian(mean_loss, model, [model.used.weight], [batch])
    vector = torch.cat([torch.zeros(6).double(), vectors(9)[0], torch.zeros(3).double()])
    torch.testing.assert_close(some(vectors(9)[0]), curvature(vector)[6:15], **EXACT)


class InPlace(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.add_(1)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        ctx.save_for_backward(inputs)
        return inputs.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * slope


class Once(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return _Once.apply(inputs)


class Flash(nn.Module):
    """An operation without a second derivative: the fast kernel, called by its own name."""

    def forward(self, inputs: Tensor) -> Tensor:
        q = inputs.view(len(inputs), 1, 1, -1)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, q, q)[0].flatten(1)


@pytest.mark.parametrize(
    ("layer", "said"),
    [(InPlace(), "changed in place.*Sigmoid"), (Once(), "once_differentiable"), (Flash(), "flash.*not implemented")],
)
@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_a_layer_without_second_derivative_is_named(layer: nn.Module, said: str, kind: str):
    body = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), layer)
    model = nn.Sequential(body, nn.Linear(4, 3)).double()
    batch = (torch.randn(5, 3).double(), torch.randint(0, 3, (5,)))
    found = hessian(mean_loss, model, differentiable(model), [batch])
    if kind == "gauss_newton":
        found = gauss_newton_of(model, [batch])
    with pytest.raises(RunError, match=rf"^0\.2 \({type(layer).__name__}\): .*{said}"):
        found(found.like + 1)


def test_an_operation_in_the_loss_without_second_derivative_is_said_to_be_there():
    model = nn.Linear(3, 3).double()
    found = hessian(lambda m, b: _Once.apply(m(b)).mean(), model, differentiable(model), [torch.randn(5, 3).double()])
    with pytest.raises(RunError, match=r"^loss: it has no second derivative"):
        found(found.like + 1)


def test_a_part_without_second_derivative_is_not_taken_for_a_constant():
    """Beside a part that has one, autograd says nothing and leaves it out."""
    model = nn.Linear(3, 3).double()
    found = hessian(
        lambda m, b: _Once.apply(m(b)).mean() + m.weight.square().sum(),
        model,
        differentiable(model),
        [torch.randn(5, 3).double()],
    )
    with pytest.raises(RunError, match="once_differentiable"):
        found(found.like + 1)


def test_the_layer_is_found_behind_others_that_are_not_differentiated_by():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), Once()).double()
    batch = (torch.randn(5, 3).double(), torch.randint(0, 3, (5,)))
    found = hessian(mean_loss, model, list(model[1].parameters()), [batch])
    with pytest.raises(RunError, match=r"^2 \(Once\): "):
        found(found.like + 1)


class Checkpointed(nn.Module):
    """Checkpointing in the way that knows no `torch.autograd.grad`, between two layers that are sound."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.inner, self.b = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.b(checkpoint(self.inner, self.a(inputs), use_reentrant=True))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_is_said_and_not_blamed_on_the_layer_behind_it():
    model = nn.Sequential(Checkpointed()).double()
    batch = (torch.randn(5, 3).double(), torch.randint(0, 3, (5,)))
    found = hessian(mean_loss, model, differentiable(model), [batch])
    said = r"^0 \(Checkpointed\): checkpointing with use_reentrant=True .*; checkpoint with use_reentrant=False$"
    with pytest.raises(RunError, match=said):
        found(found.like)


def test_what_is_wrong_in_the_forward_pass_is_passed_on():
    model = nn.Linear(3, 3).double()
    found = hessian(mean_loss, model, differentiable(model), [(torch.randn(5, 4).double(), torch.arange(5))])
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        found(found.like)


class Reweighted(nn.Module):
    """A layer that calls weight norm itself."""

    def __init__(self) -> None:
        super().__init__()
        self.v, self.g = nn.Parameter(torch.randn(3, 3).double()), nn.Parameter(torch.ones(3, 1).double())

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ torch._weight_norm(self.v, self.g, 0).T


WEIGHT = r"0\.parametrizations\.weight\.0 \(_WeightNorm\)"
NORMED = {
    "parametrization": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), WEIGHT),
    "hook": (lambda: nn.utils.weight_norm(nn.Linear(3, 3)), r"0 \(Linear\)"),
    "other dimension": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 3), dim=1), WEIGHT),
    "called": (Reweighted, r"0 \(Reweighted\)"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("name", NORMED)
def test_weight_norm_is_refused_because_its_second_derivative_is_wrong(name: str):
    make, where = NORMED[name]
    torch.manual_seed(0)
    model = nn.Sequential(make(), nn.Tanh(), nn.Linear(3, 3)).double()
    batch = (torch.randn(5, 3).double(), torch.arange(5) % 3)
    parameters = differentiable(model)
    found = hessian(mean_loss, model, parameters, [batch])
    with pytest.raises(
        RunError, match=rf"^{where}.*weight_norm has a wrong second derivative.*remove_parametrizations"
    ):
        found(found.like)
    with pytest.raises(RuntimeError, match="weight_norm has a wrong second derivative"):
        bends(mean_loss, model, parameters, batch, vectors(found.size))
    # First derivatives are right: the Gauss-Newton matrix needs no others.
    curvature = gauss_newton(lambda m, b: m(b[0]), lambda z, b: F.cross_entropy(z, b[1]), model, parameters, [batch])
    one, other = vectors(curvature.size)
    torch.testing.assert_close(one @ curvature(other), other @ curvature(one))


def test_norms_of_weights_with_a_right_second_derivative_are_not_refused():
    model = nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(3, 3)), nn.Tanh(), nn.Linear(3, 3)).double()
    batch = (torch.randn(5, 3).double(), torch.arange(5) % 3)
    found = hessian(mean_loss, model, differentiable(model), [batch])
    one, other = vectors(found.size)
    torch.testing.assert_close(one @ found(other), other @ found(one))


def batch_norm(**options: Any) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.BatchNorm1d(3, **options))).double()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (batch_norm(), r"1\.0 \(BatchNorm1d\): is in training mode"),
        (batch_norm(track_running_stats=False).eval(), r"1\.0 \(BatchNorm1d\): has no running statistics"),
        (nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).double(), r"1 \(Dropout\): is in training mode"),
    ],
)
def test_a_loss_that_is_no_function_of_the_weights_is_refused_by_path(model: nn.Module, said: str):
    found = hessian(mean_loss, model, differentiable(model), [(torch.randn(5, 3).double(), torch.arange(5) % 3)])
    with pytest.raises(SpecError, match=said):
        found(found.like)


def bad(**changes: Any) -> Callable[[], object]:
    model = nn.Linear(3, 3).double()
    given = {"batches": [(torch.randn(5, 3).double(), torch.arange(5) % 3)], "loss": mean_loss, "vector": None}
    given |= {"parameters": list(model.parameters())} | changes

    def call() -> Tensor:
        found = hessian(given["loss"], model, given["parameters"], given["batches"])
        return found(found.like if given["vector"] is None else given["vector"])

    return call


def endless() -> Iterator[int]:
    yield 1


frozen = nn.Parameter(torch.ones(2), requires_grad=False)


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (lambda: differentiable(nn.Flatten()), SpecError, "no parameter takes a gradient"),
        (bad(parameters=[]), SpecError, "parameters: there is none"),
        (bad(parameters=[frozen]), SpecError, "parameters: number 0 takes no gradient"),
        (bad(parameters=[nn.Parameter(torch.ones(2).half())]), SpecError, "torch.float16"),
        (bad(parameters=[nn.Parameter(torch.ones(2).to(t)) for t in (torch.float32, torch.float64)]), SpecError, "all"),
        (bad(parameters=[nn.Parameter(torch.ones(2))]), SpecError, "loss: depends on none"),
        (bad(batches=[]), SpecError, "batches: there is no example"),
        (bad(batches=endless()), SpecError, "read only once"),
        (bad(batches=["abc"], loss=lambda m, b: m.weight.sum()), SpecError, "batches: a batch is str"),
        (bad(loss=losses), SpecError, re.escape("loss: has shape [5]")),
        (bad(loss=lambda m, b: mean_loss(m, b).detach()), SpecError, "loss: depends on none"),
        (bad(loss=lambda m, b: mean_loss(m, b) / 0), RunError, "batch 0: the loss is not finite"),
        (bad(vector=torch.ones(4)), SpecError, re.escape("vector: has shape [4]; allowed: [12]")),
    ],
)
def test_bad_input_is_said(call: Callable[[], object], kind: type[Exception], said: str):
    with pytest.raises(kind, match=said):
        call()


def test_a_loss_on_outputs_that_is_not_finite_is_said():
    model = nn.Linear(3, 3).double()
    batches = [torch.randn(5, 3).double()]
    found = gauss_newton(lambda m, b: m(b), lambda o, b: o.sum() * float("nan"), model, differentiable(model), batches)
    with pytest.raises(RunError, match="not finite"):
        found(found.like)
