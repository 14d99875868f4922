"""Bilinear layers in the place of perceptrons: which modules go, what the layer computes, and what is refused."""

from __future__ import annotations

import pytest
import torch
from _block_models import gpt2, images, llama, texts
from torch import nn

from expunge.base.errors import SpecError
from expunge.blocks import put, with_blocks
from expunge.blocks._architecture import Placed
from expunge.blocks.bilinear import Bilinear, BilinearLayer, anneal, bilinear_layers, from_gated
from expunge.models.cnn import CNN
from expunge.models.gpt import GPT
from expunge.models.mlp import MLP
from expunge.models.vit import ViT

PLACES = {
    "mlp, two layers": (lambda: MLP(widths=[16, 8])(images()), images, ["1"], ["1"], [(256, 8)]),
    "mlp, an activation": (lambda: MLP(widths=[16, 8])(images()), images, ["2"], ["2"], [(16, 16)]),
    "cnn, 1 x 1": (lambda: CNN(width=8, hidden=8)(images()), images, ["2", "5"], ["2", "5"], [(8, 8), (16, 16)]),
    "cnn, the head": (lambda: CNN(width=8, hidden=8)(images()), images, ["10"], ["10"], [(128, 3)]),
    "gpt": (lambda: GPT(width=8, layers=2, heads=2)(texts()), texts, ["blocks.*.up"], ["blocks.0.up", "blocks.1.up"], [(8, 8)] * 2),
    "vit": (lambda: ViT(width=8, depth=1, heads=2)(images()), images, ["blocks.*.up"], ["blocks.0.up"], [(8, 8)]),
    "gpt2": (gpt2, texts, ["transformer.h.*.mlp"], ["transformer.h.0.mlp", "transformer.h.1.mlp"], [(8, 8)] * 2),
    "llama": (llama, texts, ["model.layers.*.mlp"], ["model.layers.0.mlp", "model.layers.1.mlp"], [(8, 8)] * 2),
}  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_the_layer_takes_the_place_of_the_perceptron(name):
    build, data, at, paths, widths = PLACES[name]
    torch.manual_seed(0)
    plain = sum(p.numel() for p in build().parameters())
    model = with_blocks(lambda _: build(), [Placed(Bilinear(), tuple(at), "bilinear")])(data())
    layers = bilinear_layers(model)
    assert list(layers) == paths
    assert [(layer.left.in_features, layer.out.out_features) for layer in layers.values()] == widths
    if "activation" not in name and "1 x 1" not in name:
        # As many weights as before, up to the rounding of the number of hidden units.
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(plain, rel=0.12)


def test_a_feature_map_has_one_layer_at_every_position():
    layer = BilinearLayer(4, 6, 5, dim=1)
    maps = torch.randn(2, 4, 3, 3)
    assert torch.allclose(layer(maps)[1, :, 2, 0], layer.out(layer.products(maps)[1, 2, 0]), atol=1e-6)
    assert layer(maps).shape == (2, 5, 3, 3)


def test_two_streams_are_two():
    layer = BilinearLayer(4, 6, 5, other=3)
    x, y = torch.randn(2, 4), torch.randn(2, 3)
    assert torch.allclose(layer(x, y), layer.out(layer.left(x) * layer.right(y)))
    with pytest.raises(SpecError, match="two inputs"):
        layer(x)
    with pytest.raises(SpecError, match="one input"):
        BilinearLayer(4, 6, 5)(x, x)


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.act, self.down = nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 4)


REFUSED = {
    "a convolution": (nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), "0", r"Conv2d with weights \[4, 1, 3, 3\]"),
    "a norm": (nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU()), "1", r"LayerNorm with weights \[8\]"),
    "no reader": (nn.Sequential(nn.Linear(4, 8), nn.ReLU()), "0", "no linear layer comes after"),
    "no activation": (nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), "0", "between it and '1' lies nothing"),
    "dropout between": (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 2)), "0", r"2 \(Dropout\)"),
    "a norm inside": (nn.Sequential(Norms()), "0", "'norm' in it is a LayerNorm"),
    "other widths": (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Flatten(0), nn.Linear(16, 2)), "0", "Flatten"),
    "shapes that do not chain": (nn.Sequential(nn.ModuleDict({"a": nn.Linear(4, 8), "b": nn.Linear(6, 2)})), "0.a", "lies nothing"),
    "an activation behind nothing": (nn.Sequential(nn.ReLU(), nn.Linear(4, 8)), "0", "follows no layer"),
    "attention": (nn.Sequential(nn.MultiheadAttention(4, 2)), "0", "holds weights of its own"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_place_without_a_perceptron_is_refused(name):
    model, path, finding = REFUSED[name]
    with pytest.raises(SpecError, match=finding):
        put(model, Bilinear(), path)


def test_a_layer_that_does_not_fit_its_input_is_refused():
    # The width behind the convolution is that of its channels, but the map was flattened.
    def build(_):
        return nn.Sequential(nn.Conv2d(1, 2, 8, 8), nn.Flatten(), nn.ReLU(), nn.Linear(8, 3))

    with pytest.raises(SpecError, match="does not run with it"):
        with_blocks(build, [Placed(Bilinear(), ("2",), "bilinear")])(images())


class Functional(nn.Module):
    """The second layer never runs as a module, so the identity in its place has no effect."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(256, 3), nn.ReLU(), nn.Linear(3, 3)

    def forward(self, x):
        return self.up(x.flatten(1)).relu()


def test_a_module_that_never_runs_is_refused():
    with pytest.raises(SpecError, match="'act' never runs"):
        with_blocks(lambda _: Functional(), [Placed(Bilinear(), ("up",), "bilinear")])(images())


def test_a_gated_perceptron_becomes_bilinear():
    torch.manual_seed(0)
    model, tokens = llama().eval(), texts().inputs[:4]
    with torch.no_grad():
        before = model(tokens).logits
        layer = from_gated(model, "model.layers.0.mlp")
        assert torch.allclose(model(tokens).logits, before, atol=1e-5)
        with pytest.raises(SpecError, match="still a gate"):
            layer.factors()
        anneal(model, 1.0)
        assert not torch.allclose(model(tokens).logits, before, atol=1e-5)
    x = torch.randn(3, 8)
    assert torch.allclose(layer(x), layer.out(layer.left(x) * layer.right(x)))
    assert len(layer.factors()[0]) == 12
    with pytest.raises(SpecError, match="from 0 to 1"):
        anneal(model, 1.5)


def test_only_gates_are_converted():
    with pytest.raises(SpecError, match="2 linear layers"):
        from_gated(gpt2(), "transformer.h.0.mlp")


@pytest.mark.parametrize("other", [None, 4])
def test_a_layer_without_a_direction_writes_nothing_along_it(other):
    torch.manual_seed(0)
    layer, g = BilinearLayer(4, 6, 5, other=other), torch.randn(5)
    streams = [torch.randn(7, 4)] * (1 if other is None else 2)
    before = layer(*streams).detach()
    layer.remove_direction(g)
    after = layer(*streams).detach()
    unit = g / g.norm()
    assert (after @ unit).abs().max() < 1e-6
    assert torch.allclose(after, before - torch.outer(before @ unit, unit), atol=1e-6)


def test_removed_inputs_have_no_effect():
    torch.manual_seed(0)
    layer, e, x = BilinearLayer(4, 6, 5), torch.randn(4, 1), torch.randn(7, 4)
    layer.remove_inputs(e)
    assert torch.allclose(layer(x + 3 * e.T), layer(x), atol=1e-5)
