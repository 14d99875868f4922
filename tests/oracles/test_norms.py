"""Gradients through norms in every memory layout, against norms that are written out in elementary operations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from expunge.core.case import Meter
from expunge.core.data import Data
from expunge.core.problem import Problem
from expunge.methods._gradients import mean_absolute_gradient, mean_squared_gradient, summed_gradient
from expunge.numerics.gram import gram
from expunge.numerics.linops import bends, differentiable, hessian
from expunge.numerics.norms import sound_norms

EXACT = {"rtol": 1e-8, "atol": 1e-10}
COUNT, CHANNELS = 6, 3


def written_out(
    x: Tensor, mean: Tensor | None, var: Tensor | None, weight: Tensor, bias: Tensor, dims: list[int]
) -> Tensor:
    shape = (1, -1, *[1] * (x.ndim - 2))
    if mean is None or var is None:
        centre, spread = x.mean(dims, keepdim=True), x.var(dims, unbiased=False, keepdim=True)
    else:
        centre, spread = mean.view(shape), var.view(shape)
    return (x - centre) / (spread + 1e-5).sqrt() * weight.view(shape) + bias.view(shape)


@contextmanager
def elementary() -> Iterator[None]:
    """Inside, norms of `torch.nn.functional` are elementary operations, so autograd differentiates these."""

    def batch_norm(x, mean, var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
        return written_out(x, *((None, None) if training else (mean, var)), weight, bias, [0, *range(2, x.ndim)])

    def instance_norm(x, mean=None, var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, eps=1e-5):
        return written_out(x, *((None, None) if use_input_stats else (mean, var)), weight, bias, [*range(2, x.ndim)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "batch_norm", batch_norm)
        patch.setattr(F, "instance_norm", instance_norm)
        yield


def tokens(x: Tensor) -> Tensor:
    """Positions as tokens, as nets of convolutions and attention have them."""
    return x.flatten(2).transpose(1, 2)


class Net(nn.Module):
    """A convolution, something with a norm, and a head on the mean over tokens."""

    def __init__(
        self,
        norm: nn.Module,
        then: Callable[[Tensor], Tensor] = tokens,
        body: nn.Module | None = None,
        **settings: bool,
    ) -> None:
        super().__init__()
        self.body, self.norm, self.then = body or nn.Conv2d(1, CHANNELS, 3, padding=1), norm, then
        self.head = nn.Linear(CHANNELS, 3)
        self.first, self.twice = settings.get("first", False), settings.get("twice", False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        if self.first:
            # Tokens `[positions, b, channels]` as attention has them by default: now the norm's input has such strides.
            hidden = tokens(hidden).transpose(0, 1).contiguous().permute(1, 2, 0).view(hidden.shape)
        hidden = self.norm(hidden)
        if self.twice:
            hidden = self.norm(hidden.tanh())
        return self.head(self.then(hidden).tanh().mean(1))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(CHANNELS)), nn.Parameter(torch.zeros(CHANNELS))
        self.register_buffer("mean", torch.zeros(CHANNELS))
        self.register_buffer("var", torch.ones(CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, self.scale, self.shift)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.BatchNorm2d(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)


class Frozen(nn.BatchNorm2d):
    """A norm of fixed numbers, behind a trained convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.requires_grad_(False)


def in_place(x: Tensor) -> Tensor:
    return tokens(x.mul_(0.7))


def weighted(x: Tensor) -> Tensor:
    """A sum over positions whose gradient is contiguous."""
    return (x.flatten(1) * torch.linspace(0, 1, x[0].numel()).to(x)).view(*x.shape[:2], -1).sum(2)[:, None]


def by_width(x: Tensor) -> Tensor:
    """Tokens of a signal `[b, channels, 1, time]`."""
    return x.permute(0, 3, 1, 2).flatten(2)


def volumes(norm: nn.Module) -> Net:
    return Net(norm, body=nn.Sequential(nn.Unflatten(3, (5, 1)), nn.Conv3d(1, CHANNELS, 3, padding=1)))


def signals(norm: nn.Module) -> Net:
    return Net(
        norm, by_width, body=nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (1, 20)), nn.Conv2d(1, CHANNELS, (1, 3)))
    )


def channels_last(norm: nn.Module) -> Net:
    return Net(norm).to(memory_format=torch.channels_last)


WRONG: dict[str, Callable[[], nn.Module]] = {
    "batch norm, then tokens": lambda: Net(nn.BatchNorm2d(CHANNELS)),
    "in place behind it": lambda: Net(nn.BatchNorm2d(CHANNELS), in_place),
    "the function": lambda: Net(Functional()),
    "tokens in front": lambda: Net(nn.BatchNorm2d(CHANNELS), weighted, first=True),
    "twice": lambda: Net(nn.BatchNorm2d(CHANNELS), twice=True),
    "frozen": lambda: Net(Frozen(CHANNELS)),
    "checkpointed": lambda: Net(Checkpointed()),
    "volumes": lambda: volumes(nn.BatchNorm3d(CHANNELS)),
    "one pixel high": lambda: signals(nn.BatchNorm2d(CHANNELS)),
    "instance norm": lambda: Net(nn.InstanceNorm2d(CHANNELS, affine=True)),
    "instance norm with statistics": lambda: Net(nn.InstanceNorm2d(CHANNELS, affine=True, track_running_stats=True)),
    "instance norm of volumes": lambda: volumes(nn.InstanceNorm3d(CHANNELS, affine=True)),
}
RIGHT: dict[str, Callable[[], nn.Module]] = {
    "channels last": lambda: channels_last(nn.BatchNorm2d(CHANNELS)),
    "group norm": lambda: Net(nn.GroupNorm(1, CHANNELS)),
    "an activation between": lambda: Net(nn.Sequential(nn.BatchNorm2d(CHANNELS), nn.ReLU())),
    "an expanded gradient": lambda: Net(nn.BatchNorm2d(CHANNELS), lambda x: x.mean((2, 3))[:, None]),
    "one dimension": lambda: Net(nn.BatchNorm1d(CHANNELS), body=nn.Sequential(nn.Flatten(2), nn.Conv1d(1, CHANNELS, 3))),
}  # fmt: skip


def made(name: str) -> tuple[nn.Module, Problem]:
    torch.manual_seed(0)
    model = (WRONG | RIGHT)[name]().double().eval()
    with torch.no_grad():
        for tensor in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]:
            tensor.add_(0.3 * torch.rand_like(tensor))
    data = Data(torch.randn(COUNT, 1, 4, 5).double(), torch.arange(COUNT) % 3, torch.arange(4), torch.tensor([4, 5]))
    return model, Problem(data, torch.tensor([0]), torch.arange(1, 4), data.test)


def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def oracle(model: nn.Module, problem: Problem) -> Tensor:
    """Each example's gradient `[n, p]` by elementary operations; each example is alone in its batch."""
    model, rows = copy.deepcopy(model), []
    with elementary():
        for one in torch.arange(COUNT).split(1):
            loss = losses(model, (problem.data.inputs[one], problem.data.targets[one])).sum()
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, differentiable(model))]))
    return torch.stack(rows)


def flat(tensors: list[Tensor] | None) -> Tensor:
    assert tensors is not None
    return torch.cat([tensor.flatten() for tensor in tensors])


@pytest.mark.parametrize("name", [*WRONG, *RIGHT])
def test_every_gradient_of_one_example_is_that_of_elementary_operations(name: str) -> None:
    model, problem = made(name)
    truth, ids = oracle(model, problem), torch.arange(COUNT)
    squared = mean_squared_gradient(model, problem, ids, Meter())
    torch.testing.assert_close(flat(squared), truth.square().mean(0), **EXACT)
    absolute = mean_absolute_gradient(model, problem, ids, Meter(), lambda d, _: F.cross_entropy(d.logits, d.targets))
    torch.testing.assert_close(flat(absolute), truth.abs().mean(0), **EXACT)
    torch.testing.assert_close(flat(summed_gradient(model, problem, ids, Meter(), 5)), truth.sum(0), **EXACT)


@pytest.mark.parametrize("block", [1, 4, 5])
@pytest.mark.parametrize("name", [*WRONG, *RIGHT])
def test_a_gram_matrix_is_that_of_elementary_operations(name: str, block: int) -> None:
    model, problem = made(name)
    truth = oracle(model, problem)
    examples = (problem.data.inputs, problem.data.targets)
    result = gram(losses, model, differentiable(model), examples, block=block)
    torch.testing.assert_close(result.matrix, truth @ truth.T, **EXACT)
    # These have a rule, so the comparison with autograd must not have thrown it out.
    if type(getattr(model, "norm", None)) is nn.BatchNorm2d:
        assert not result.unsupported


@pytest.mark.parametrize("name", WRONG)
def test_curvature_of_one_example_is_that_of_elementary_operations(name: str) -> None:
    model, problem = made(name)
    batch, parameters = (problem.data.inputs[:1], problem.data.targets[:1]), differentiable(model)
    vector = torch.randn(sum(p.numel() for p in parameters)).double()

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return losses(model, batch).mean()

    product = hessian(loss, model, parameters, [batch])(vector)
    slope, curvature = bends(loss, model, parameters, batch, vector[None])
    with elementary():
        slopes = torch.autograd.grad(loss(model, batch), parameters, create_graph=True)
        along = sum(
            (s.flatten() @ v for s, v in zip(slopes, vector.split([p.numel() for p in parameters]), strict=True))
        )
        truth = torch.cat(
            [t.flatten() for t in torch.autograd.grad(along, parameters, materialize_grads=True, allow_unused=True)]
        )
    torch.testing.assert_close(product, truth, **EXACT)
    torch.testing.assert_close(slope, torch.cat([s.detach().flatten() for s in slopes]), **EXACT)
    torch.testing.assert_close(curvature[0], vector @ truth, **EXACT)


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("training", [False, True])
def test_a_step_on_one_example_has_the_gradient_of_elementary_operations(name: str, training: bool) -> None:
    model, problem = made(name)
    model.train(training)
    batch = problem.data.batch(problem.forget)
    problem.objective.loss(model, batch).backward()
    gradients = torch.cat([p.grad.flatten() for p in differentiable(model)])
    with elementary():
        value = losses(model, (batch.inputs, batch.targets)).mean()
        truth = torch.cat([g.flatten() for g in torch.autograd.grad(value, differentiable(model))])
    torch.testing.assert_close(gradients, truth, **EXACT)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: nn.Conv2d(3, 4, 3, padding=1),
    "convolution in groups": lambda: nn.Conv2d(3, 3, 3, padding=1, groups=3),
    "transposed convolution": lambda: nn.ConvTranspose2d(3, 4, 3, padding=1),
    "largest": lambda: nn.MaxPool2d(2, 1, 1),
    "mean": lambda: nn.AvgPool2d(2, 1, 1),
    "adaptive mean": lambda: nn.AdaptiveAvgPool2d((2, 1)),
    "adaptive largest": lambda: nn.AdaptiveMaxPool2d((2, 1)),
    "bilinear": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "group norm": lambda: nn.GroupNorm(1, 3),
    "layer norm": lambda: nn.LayerNorm(5),
    "prelu": lambda: nn.PReLU(3),
    "unfold": lambda: nn.Unfold(2, 1, 1),
}


@pytest.mark.parametrize("shape", [(1, 3, 4, 5), (3, 3, 1, 5), (1, 3, 1, 5)])
@pytest.mark.parametrize("name", LAYERS)
def test_other_layers_are_right_in_every_layout(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer, plain = LAYERS[name]().double(), torch.randn(shape).double()
    for order in ((0, 1, 2, 3), (0, 2, 3, 1), (2, 3, 0, 1), (0, 3, 1, 2), (2, 3, 1, 0)):
        back = [order.index(i) for i in range(4)]
        inputs = [plain.clone().requires_grad_(), plain.permute(order).contiguous().permute(back).requires_grad_()]
        outputs = [layer(x) for x in inputs]
        slope = torch.randn(outputs[0].shape).double()
        strided = slope.permute(order).contiguous().permute(back) if slope.ndim == 4 else slope.mT.contiguous().mT
        ours = torch.autograd.grad(outputs[1], [inputs[1], *layer.parameters()], strided)
        torch.testing.assert_close(
            ours, torch.autograd.grad(outputs[0], [inputs[0], *layer.parameters()], slope), **EXACT
        )


def test_the_functions_are_replaced_only_inside_and_no_other_number_changes() -> None:
    before = F.batch_norm, F.instance_norm
    x, mean, var = torch.randn(3, 4, 5, 6).requires_grad_(), torch.zeros(4), torch.ones(4)
    plain = F.batch_norm(x, mean, var)
    with pytest.raises(ZeroDivisionError), sound_norms(), sound_norms():
        assert F.batch_norm is not before[0] and F.instance_norm is not before[1]
        sound = F.batch_norm(input=x, running_mean=mean, running_var=var)
        assert torch.equal(sound, plain) and sound._backward_hooks is None
        raise ZeroDivisionError
    assert (F.batch_norm, F.instance_norm) == before


def test_functions_that_the_user_has_replaced_stay_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def own(x: Tensor, *rest: object) -> Tensor:
        return 2 * x

    monkeypatch.setattr(F, "batch_norm", own)
    with sound_norms():
        assert torch.equal(F.batch_norm(torch.ones(1, 2), None, None), torch.full((1, 2), 2.0))
    assert F.batch_norm is own


def test_threads_do_not_leave_the_functions_replaced() -> None:
    before = F.batch_norm, F.instance_norm

    def often() -> None:
        for _ in range(2000):
            with sound_norms():
                assert F.batch_norm is not before[0]

    threads = [Thread(target=often) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (F.batch_norm, F.instance_norm) == before
