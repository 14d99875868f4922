"""The rule of every known layer against autograd: one backward pass for each example and each layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from expunge.base.errors import MissingError
from expunge.numerics._capture import Use, uses, watched
from expunge.numerics.factors import RULES, factors, kronecker_rows, no_rule, rule_of

EXACT = {"rtol": 1e-10, "atol": 1e-10}
COUNT = 6


def transposed(*sizes: int) -> nn.Module:
    """A linear layer whose weight is `[in, out]`, as those of GPT-2 are."""
    layer: nn.Module = pytest.importorskip("transformers.pytorch_utils").Conv1D(*sizes)
    return layer


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 4), (5,)),
    "linear on a sequence": (lambda: nn.Linear(5, 4, bias=False), (2, 3, 5)),
    "transposed linear": (lambda: transposed(4, 5), (5,)),
    "transposed linear on a sequence": (lambda: transposed(4, 5), (3, 5)),
    "conv1d": (lambda: nn.Conv1d(2, 4, 3, stride=2, padding=2, dilation=2), (2, 9)),
    "conv1d in groups": (lambda: nn.Conv1d(4, 6, 3, groups=2, bias=False), (4, 8)),
    "conv2d": (lambda: nn.Conv2d(2, 4, (3, 2), (2, 1), (1, 2), (1, 2)), (2, 6, 7)),
    "conv2d of one position": (lambda: nn.Conv2d(2, 4, 3), (2, 3, 3)),
    "conv2d in groups": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False), (4, 6, 5)),
    "conv2d in groups of one position": (lambda: nn.Conv2d(4, 6, 3, groups=2), (4, 3, 3)),
    "embedding": (lambda: nn.Embedding(7, 3), (5,)),
    "embedding with padding": (lambda: nn.Embedding(7, 3, padding_idx=2), (2, 5)),
    "layer norm": (lambda: nn.LayerNorm(5), (3, 5)),
    "layer norm over two dimensions": (lambda: nn.LayerNorm((3, 5)), (2, 3, 5)),
    "layer norm without shift": (lambda: nn.LayerNorm(5, bias=False), (5,)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (4, 3, 2)),
    "batch norm of vectors": (lambda: nn.BatchNorm1d(4), (4,)),
    "batch norm of images": (lambda: nn.BatchNorm2d(4), (4, 3, 2)),
}
MATRICES = [name for name in LAYERS if ("linear" in name or "conv" in name) and "groups" not in name]


def made(name: str) -> tuple[nn.Module, Tensor]:
    """A layer with weights, scales and statistics away from where they start, and inputs for it."""
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = make().double().eval()
    with torch.no_grad():
        for tensor in [*layer.parameters(), *(b for b in layer.buffers() if b.is_floating_point())]:
            tensor.add_(0.2 + 0.5 * torch.rand_like(tensor))
    tokens = isinstance(layer, nn.Embedding)
    inputs = torch.randint(0, 7, (COUNT, *shape)) if tokens else torch.randn(COUNT, *shape).double()
    return layer, inputs


def loss(layer: nn.Module, inputs: Tensor) -> Tensor:
    """A sum over examples, of which none depends on another."""
    values = layer(inputs).flatten(1)
    return (values * torch.linspace(-1, 1, values.shape[1]).double()).sin().sum()


def use_of(layer: nn.Module, inputs: Tensor) -> Use:
    with watched({"layer": layer}) as calls:
        total = loss(layer, inputs)
    (use,) = uses(calls, total)
    return use


def by_autograd(layer: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """Each example's gradient `[n, ...]`, by parameter."""
    names, parameters = zip(*layer.named_parameters(), strict=True)
    rows = [torch.autograd.grad(loss(layer, inputs[i : i + 1]), parameters) for i in range(len(inputs))]
    return dict(zip(names, map(torch.stack, zip(*rows, strict=True)), strict=True))


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_those_of_autograd_one_by_one(name: str) -> None:
    layer, inputs = made(name)
    use, truth = use_of(layer, inputs), by_autograd(layer, inputs)
    found = factors(use.layer, use.inputs, use.gradients)
    assert found is not None and set(found) == set(truth)
    for key, gradients in truth.items():
        shape = gradients.shape[1:]
        assert gradients.abs().max() > 1e-3
        torch.testing.assert_close(found[key].gradients(shape).view_as(gradients), gradients, **EXACT)
        some = found[key].part(slice(1, 3)).gradients(shape)
        torch.testing.assert_close(some.view_as(gradients[1:3]), gradients[1:3], **EXACT)
        for magnitude in (torch.square, torch.abs):
            torch.testing.assert_close(found[key].sum_of(magnitude, shape), magnitude(gradients).sum(0), **EXACT)


@pytest.mark.parametrize("name", MATRICES)
def test_kronecker_rows_have_the_second_moments_of_inputs_and_output_gradients(name: str) -> None:
    """Against patches that are cut out one by one, and gradients at the output by autograd."""
    layer, inputs = made(name)
    use = use_of(layer, inputs)
    found = kronecker_rows(use.layer, use.inputs, use.gradients, use.path)
    given = torch.cat([seen(layer, example) for example in inputs])
    torch.testing.assert_close(found.inputs.T @ found.inputs, given.T @ given, **EXACT)
    output = layer(inputs).detach().requires_grad_()
    values = output.flatten(1)
    (back,) = torch.autograd.grad((values * torch.linspace(-1, 1, values.shape[1]).double()).sin().sum(), output)
    back = back.flatten(0, -2) if "linear" in name else back.flatten(2).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(found.gradients.T @ found.gradients, back.T @ back, **EXACT)
    # Row by row they belong together: their products add up to the gradient of the summed loss.
    (whole,) = torch.autograd.grad(loss(layer, inputs), layer.weight)
    product = found.gradients.T @ found.inputs
    torch.testing.assert_close((product.T if "transposed" in name else product).view_as(whole), whole, **EXACT)


def seen(layer: nn.Module, example: Tensor) -> Tensor:
    """What the weight is multiplied by, a row per position: the derivative of one output channel by the weight."""
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        return example.reshape(-1, example.shape[-1])
    outputs = layer(example[None])[0, 0].flatten()
    slopes = [torch.autograd.grad(output, layer.weight, retain_graph=True)[0] for output in outputs]
    return torch.stack([slope[0].flatten() for slope in slopes])


REFUSED: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: nn.LSTM(2, 3),
    "Bilinear": lambda: nn.Bilinear(2, 2, 3),
    "Masked": lambda: Masked(2, 3),
    "Conv1d": lambda: nn.Conv1d(2, 3, 3, padding="same"),
    "Conv2d": lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(2, 3, 3),
    "Embedding": lambda: nn.Embedding(5, 3, max_norm=1.0),
    "BatchNorm1d": lambda: nn.BatchNorm1d(3, track_running_stats=False),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(3),
}


class Masked(nn.Linear):
    """Not what it is derived from."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs * (inputs > 0))


class Renamed(nn.Linear):
    """Computes what it is derived from."""


@pytest.mark.parametrize("kind", REFUSED)
def test_other_layers_have_no_rule_and_are_named(kind: str) -> None:
    layer = REFUSED[kind]()
    assert rule_of(layer) is None
    assert factors(layer, torch.zeros(2, 2, 2), torch.zeros(2, 2, 2)) is None
    with pytest.raises(MissingError, match=rf"blocks\.3 \({kind}\): there is no rule .*allowed: Linear,"):
        kronecker_rows(layer, torch.zeros(2, 2, 2), torch.zeros(2, 2, 2), "blocks.3")


def test_a_derived_class_with_the_same_forward_keeps_the_rule() -> None:
    assert rule_of(Renamed(2, 3)) is RULES[nn.Linear]


@pytest.mark.parametrize("name", sorted(set(LAYERS) - set(MATRICES)))
def test_a_layer_whose_weight_is_no_matrix_has_no_kronecker_rows(name: str) -> None:
    layer, inputs = made(name)
    use = use_of(layer, inputs)
    with pytest.raises(MissingError, match=rf"^layer \({type(layer).__name__}\): .*Conv1d and Conv2d in one group"):
        kronecker_rows(use.layer, use.inputs, use.gradients, use.path)


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [(nn.Conv2d(6, 3, 2), (6, 4, 4)), (nn.Conv1d(6, 3, 2), (6, 4)), (nn.BatchNorm1d(4), (6, 4))],
    ids=["an image without batch", "a sequence without batch", "batch norm in training mode"],
)
def test_a_call_that_does_not_tell_examples_apart_has_no_factors(layer: Any, inputs: tuple[int, ...]) -> None:
    given = torch.randn(inputs)
    assert factors(layer, given, layer(given)) is None


def test_the_error_names_every_layer_that_has_a_rule() -> None:
    text = str(no_rule(nn.LSTM(1, 1), ""))
    assert text.startswith("model (LSTM): ") and "transformers.pytorch_utils.Conv1D" in text and "GroupNorm" in text


@pytest.mark.parametrize("in_place", [True, False])
def test_what_is_watched_keeps_its_outputs_and_hooks_are_gone_afterwards(in_place: bool) -> None:
    layer, inputs = made("linear")
    with watched({"layer": layer}, in_place=in_place) as calls:
        output = layer(inputs)
    assert torch.equal(output, layer(inputs)) and len(calls) == 1 and not layer._forward_hooks


def test_a_call_that_the_losses_do_not_depend_on_is_left_out() -> None:
    layer, inputs = made("linear")
    with watched({"layer": layer}) as calls:
        total = layer(inputs).sum()
        layer(inputs)
    assert [use.path for use in uses(calls, total)] == ["layer"]


def test_what_changes_in_place_afterwards_has_the_gradient_before() -> None:
    layer, inputs = made("linear on a sequence")
    with watched({"layer": layer}) as calls:
        total = (2 * layer(inputs).relu_()).sum()
    (use,) = uses(calls, total)
    torch.testing.assert_close(use.gradients, 2 * (layer(inputs) > 0).double())
