"""Gram matrices of per-example gradients against the gradients themselves, one backward pass each."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _nets import ARCHITECTURES, EXACT, Batch, cut, losses, net, per_example_gradients
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from expunge.base.errors import RunError, SpecError
from expunge.core.data import Batch as NamedBatch
from expunge.numerics import _overlap
from expunge.numerics.gram import gram
from expunge.numerics.linops import differentiable


def explicit(model: nn.Module, batch: Batch, others: Batch | None = None) -> Tensor:
    ours = per_example_gradients(model, batch, differentiable(model))
    return ours @ (ours if others is None else per_example_gradients(model, others, differentiable(model))).T


@pytest.fixture(params=["cheaper", "products", "gradients"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The way that the sizes choose, and either of the two for everything."""
    if request.param != "cheaper":
        cost = {"products": "_cost_of_gradients", "gradients": "_cost_of_products"}[request.param]
        monkeypatch.setattr(_overlap, cost, lambda *_: 2**60)
    return request.param


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_is_that_of_explicit_gradients(name: str, way: str):
    model, batch = net(name)
    found = gram(losses, model, differentiable(model), batch, block=3)
    torch.testing.assert_close(found.matrix, explicit(model, batch), **EXACT)
    assert torch.equal(found.matrix, found.matrix.T)
    # A bare parameter, and an embedding whose input does not tell the examples apart.
    assert found.unsupported == {"vit": ["positions"], "gpt": ["positions.weight"]}.get(name, [])
    assert set(found.ways) == {key for key, _ in model.named_parameters()}
    if way != "cheaper":
        assert set(found.ways.values()) - {"one by one"} == {way}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_between_two_sets_it_is_the_corner_of_that_of_both(name: str):
    model, batch = net(name)
    forget, retain = cut(batch, 2, 5)
    found = gram(losses, model, differentiable(model), forget, retain, block=4)
    assert found.matrix.shape == (2, 5)
    torch.testing.assert_close(found.matrix, explicit(model, batch)[:2, 2:], **EXACT)


@pytest.mark.parametrize("size", [1, 2, 6, 7, 100])
def test_blocks_do_not_matter(size: int):
    model, batch = net("gpt")
    found = gram(losses, model, differentiable(model), batch, block=size)
    torch.testing.assert_close(found.matrix, explicit(model, batch), **EXACT)


def test_pieces_do_not_matter(way: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_overlap, "PIECE", 50)
    for name in ("cnn_group", "gpt"):
        model, batch = net(name)
        found = gram(losses, model, differentiable(model), batch, block=4)
        torch.testing.assert_close(found.matrix, explicit(model, batch), **EXACT)


def test_the_cheaper_way_is_taken_by_sizes():
    """28 x 28 positions of a first convolution against nine weights, and a wide linear layer on one position."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 28 * 28, 3)).double()
    batch = (torch.randn(5, 1, 28, 28).double(), torch.arange(5) % 3)
    found = gram(losses, model, differentiable(model), batch)
    assert found.ways["0.weight"] == "gradients" and found.ways["3.weight"] == "products"
    torch.testing.assert_close(found.matrix, explicit(model, batch), **EXACT)


class Tied(nn.Module):
    """A linear layer called twice, another with the same weight, and a bias and a norm that are shared too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4)
        self.b.weight = self.a.weight
        self.b.bias = self.norm.bias

    def forward(self, inputs: Tensor) -> Tensor:
        return self.norm(self.b(self.norm(self.a(torch.tanh(self.a(inputs))))))


class Functional(nn.Module):
    """A layer whose weight is used outside of it as well: the layer's own share would be silently too little."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(4, 4), nn.Parameter(torch.ones(4))

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.layer(inputs)), self.layer.weight) * self.scale


class Masked(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs, self.weight * (self.weight > 0), self.bias)


class Routed(nn.Module):
    """A weight that only some examples use, and outside of any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.expert = nn.Linear(4, 4), nn.Parameter(torch.randn(4, 4))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs) + torch.where(inputs[:, :1] > 1, inputs @ self.expert, torch.zeros(()).to(inputs))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.cell(inputs.view(-1, 2, 2))[0][:, -1])


class Attention(nn.Module):
    """Its output projection is a linear layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(2, 1, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = inputs.view(-1, 2, 2)
        return self.attention(tokens, tokens, tokens)[0].flatten(1)


class Words(nn.Module):
    """Padding that is never learned, tied to the output layer; as many positions as there are examples."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(5, 3, padding_idx=0, **options), nn.Embedding(6, 3)
        self.out = nn.Linear(3, 5)
        self.out.weight = self.words.weight

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = (inputs.abs() * 10).long() % 5
        return self.out(torch.tanh(self.words(tokens) + self.places(torch.arange(tokens.shape[1])))).mean(1)


def weight_normed() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 3))


def convolutional(size: int = 2, **options: Any) -> nn.Module:
    body = nn.Conv2d(1, 4, size, **options)
    return nn.Sequential(nn.Unflatten(1, (1, 2, 2)), body, nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(3))


def grouped() -> nn.Module:
    body = nn.Conv2d(2, 4, (2, 1), groups=2, stride=(1, 2), padding=(3, 1), dilation=(2, 1))
    return nn.Sequential(nn.Unflatten(1, (2, 1, 2)), body, nn.GroupNorm(2, 4), nn.Flatten(), nn.LazyLinear(3))


def one_dimensional() -> nn.Module:
    body = nn.Conv1d(2, 4, 2, groups=2, stride=2, padding=3, dilation=2)
    return nn.Sequential(nn.Unflatten(1, (2, 2)), body, nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(3))


def transposed() -> nn.Module:
    kind = pytest.importorskip("transformers.pytorch_utils").Conv1D
    return nn.Sequential(nn.Unflatten(1, (2, 2)), kind(5, 2), nn.Tanh(), nn.Flatten(), kind(3, 10))


def batch_normed() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Softplus(), nn.Linear(3, 3, bias=False))
    model[1].running_mean.add_(0.3)
    model[1].running_var.add_(0.7)
    return model.eval()


CASES: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "tied layers": (Tied, []),
    "weight used elsewhere": (Functional, ["scale", "layer.weight"]),
    "subclass of its own": (lambda: nn.Sequential(Masked(4, 4), nn.Tanh(), nn.Linear(4, 3)), ["0.weight", "0.bias"]),
    "used by some": (Routed, ["expert"]),
    "lstm": (Recurrent, [f"cell.{k}_l0" for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]),
    "attention": (Attention, [f"attention.{k}" for k in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")]),
    "words": (Words, ["places.weight"]),
    "words scaled by frequency": (lambda: Words(scale_grad_by_freq=True), ["words.weight", "places.weight"]),
    "weight norm": (weight_normed, [f"0.parametrizations.weight.original{k}" for k in (0, 1)]),
    "in place": (convolutional, []),
    "padding by name": (lambda: convolutional(3, padding="same"), ["1.weight", "1.bias"]),
    "padding by reflection": (lambda: convolutional(padding=1, padding_mode="reflect"), ["1.weight", "1.bias"]),
    "groups and strides": (grouped, []),
    "batch norm": (batch_normed, []),
    "one dimension": (one_dimensional, []),
    "transposed": (transposed, []),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_any_module_is_exact_and_what_has_no_product_form_is_named(case: str, way: str):
    make, unsupported = CASES[case]
    # As many examples as a sequence of theirs has positions, in some of the blocks.
    batch = (torch.randn(10, 4), torch.randint(0, 3, (10,)))
    model = make()
    model(batch[0])
    model, batch = model.double(), (batch[0].double(), batch[1])
    found = gram(losses, model, differentiable(model), batch, block=4)
    torch.testing.assert_close(found.matrix, explicit(model, batch), **EXACT)
    assert found.unsupported == unsupported


def test_some_of_the_parameters():
    model, batch = net("cnn_group")
    some = [p for name, p in model.named_parameters() if name.endswith("bias")]
    gradients = per_example_gradients(model, batch, some)
    torch.testing.assert_close(gram(losses, model, some, batch).matrix, gradients @ gradients.T, **EXACT)


@pytest.mark.parametrize("kept", [0, 2**24])
def test_gradients_taken_one_by_one_are_kept_only_where_they_are_small(kept: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("expunge.numerics.gram.KEPT", kept)
    model, batch = net("vit", 6)
    alone: list[int] = []

    def counting(m: nn.Module, b: Batch) -> Tensor:
        alone.append(len(b[0]))
        return losses(m, b)

    found = gram(counting, model, differentiable(model), batch, block=2)
    torch.testing.assert_close(found.matrix, explicit(model, batch), **EXACT)
    # Two for the comparison, two alone and as two copies; then each example once, or each in every pair of blocks on
    # either side.
    assert alone.count(1) == 4 + (6 if kept else 24)
    assert alone.count(2) == 4 + 6


def test_no_pass_holds_more_than_a_block_and_pairs_are_computed_once():
    model, batch = net("cnn_batch", 7)
    sizes: list[int] = []

    def counting(m: nn.Module, b: Batch) -> Tensor:
        sizes.append(len(b[0]))
        return losses(m, b)

    gram(counting, model, differentiable(model), batch, block=3)
    # Blocks of 3, 3, 1: a comparison (losses, factors, two examples), then 3 + 2 + 1 passes.
    assert sizes == [3, 3, 1, 1, 3, 3, 1, 3, 1, 1]


def test_single_precision_named_batches_and_gradient_mode():
    model, batch = net("cnn_group")
    exact = explicit(model, batch)
    single = model.float()
    named = NamedBatch(batch[0].float(), batch[1], torch.arange(7))
    with torch.no_grad():
        found = gram(lambda m, b: losses(m, (b.inputs, b.targets)), single, differentiable(single), named, block=4)
    assert found.matrix.dtype == torch.float32 and not found.matrix.requires_grad
    torch.testing.assert_close(found.matrix.double(), exact, rtol=1e-4, atol=1e-4)
    tables = {"x": batch[0].float(), "y": batch[1]}
    of_tables = gram(lambda m, b: losses(m, (b["x"], b["y"])), single, differentiable(single), tables, block=4)
    assert torch.equal(of_tables.matrix, found.matrix)


def test_the_model_is_left_as_it_was():
    model, batch = net("gpt")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gram(losses, model, differentiable(model), batch)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def bad(**changes: Any) -> Callable[[], object]:
    model = nn.Linear(3, 3).double()
    batch = (torch.randn(5, 3).double(), torch.arange(5) % 3)
    given = {"losses": losses, "model": model, "parameters": list(model.parameters()), "examples": batch, "block": 2}
    return lambda: gram(**(given | changes))


frozen = nn.Parameter(torch.ones(2), requires_grad=False)


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (bad(examples=(torch.ones(0, 3).double(), torch.ones(0).long())), SpecError, "0 examples"),
        (bad(others=(torch.ones(0, 3).double(), torch.ones(0).long())), SpecError, "0 examples"),
        (bad(block=0), SpecError, "blocks of 0"),
        (bad(examples="abc"), SpecError, "a batch is str"),
        (bad(parameters=[]), SpecError, "parameters: there is none"),
        (bad(parameters=[frozen]), SpecError, "takes no gradient"),
        (bad(parameters=[nn.Parameter(torch.ones(2))]), SpecError, "1 are not the model's"),
        (bad(losses=lambda m, b: losses(m, b).mean()), SpecError, re.escape("losses: has shape []")),
        (bad(losses=lambda m, b: losses(m, b).detach()), SpecError, "depend on none"),
        (bad(losses=lambda m, b: losses(m, b) / b[1]), RunError, "example 0 of a block: the loss is not finite"),
        (bad(model=nn.BatchNorm1d(3)), SpecError, "not the model's"),
    ],
)
def test_bad_input_is_said(call: Callable[[], object], kind: type[Exception], said: str):
    with pytest.raises(kind, match=said):
        call()


def test_batch_norm_in_training_mode_is_refused_by_path():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double()
    with pytest.raises(SpecError, match=r"1 \(BatchNorm1d\): is in training mode"):
        gram(losses, model, differentiable(model), (torch.randn(5, 3).double(), torch.arange(5) % 3))


class InPlace(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.add_(1)


class Between(nn.Module):
    """Bare parameters, whose gradients are taken one by one, and a change between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.squashed = nn.Parameter(torch.randn(4, 3)), nn.Sigmoid()

    def forward(self, inputs: Tensor) -> Tensor:
        found = self.squashed(inputs @ self.weight.T)
        found.add_(1)
        return found


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.inner = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return checkpoint(self.inner, self.a(inputs), use_reentrant=True)


BROKEN = {
    "layer": (
        nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), InPlace()),
        r"0\.2 \(InPlace\): .*changed in place.*new tensor",
    ),
    "between": (Between(), r"0 \(Between\): .*changed in place"),
    "checkpoint": (Checkpointed(), r"0 \(Checkpointed\): checkpointing with use_reentrant=True.*use_reentrant=False"),
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("kind", BROKEN)
def test_a_layer_that_cannot_be_differentiated_is_named(kind: str):
    body, said = BROKEN[kind]
    model = nn.Sequential(body, nn.Linear(4, 3)).double()
    batch = (torch.randn(5, 3).double(), torch.randint(0, 3, (5,)))
    with pytest.raises(RunError, match=f"^{said}"):
        gram(losses, model, differentiable(model), batch)
