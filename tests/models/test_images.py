"""ResNet-9 and the vision transformer: shapes, sizes as stated, and what they refuse."""

from __future__ import annotations

import inspect
import math
import re

import pytest
import torch
from torch import nn

from expunge.base.errors import SpecError
from expunge.core.contracts import Architecture
from expunge.core.data import Data
from expunge.models import cnn, resnet9, vit
from expunge.models.cnn import CNN
from expunge.models.resnet9 import ResNet9
from expunge.models.vit import ViT


def images(channels: int, size: int, width: int | None = None) -> Data:
    inputs = torch.randn(6, channels, size, width or size, generator=torch.Generator().manual_seed(0))
    return Data(inputs, torch.arange(6) % 3, torch.arange(4), torch.arange(4, 6), tuple("abcdefghij"))


def built(architecture: Architecture, data: Data, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return architecture(data)


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("channels", "pixels"), [(1, 8), (1, 28), (3, 32)])
@pytest.mark.parametrize(
    "architecture",
    [ResNet9(width=4), ResNet9(width=4, norm="batch"), ResNet9(width=6, norm="none"), ViT(width=16, depth=2), CNN()],
    ids=str,
)
def test_one_logit_per_class_and_a_gradient_for_each_weight(
    architecture: Architecture, channels: int, pixels: int
) -> None:
    data = images(channels, pixels)
    model = built(architecture, data)
    logits = model(data.inputs)
    assert logits.shape == (6, 10) and torch.isfinite(logits).all()
    logits.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    same, other = built(architecture, data).state_dict(), built(architecture, data, 1).state_dict()
    assert all(torch.equal(same[n], t) for n, t in built(architecture, data).state_dict().items())
    assert any(not torch.equal(same[n], t) for n, t in other.items())


@pytest.mark.parametrize("norm", ["group", "none"])
def test_logits_of_an_image_do_not_depend_on_the_others(norm: str) -> None:
    data = images(1, 28)
    for architecture in (ResNet9(width=4, norm=norm), ViT(width=16, depth=1)):  # type: ignore[arg-type]
        model = built(architecture, data)
        # Another batch size sums in another order, in single precision.
        assert torch.allclose(model(data.inputs)[:2], model(data.inputs[:2]), rtol=1e-4, atol=1e-5)


def resnet_size(channels: int, w: int, classes: int) -> int:
    """Weights of 3 x 3 convolutions without bias, two numbers per normalised channel, and the linear layer."""
    pairs = [(channels, w), (w, 2 * w), (2 * w, 2 * w), (2 * w, 2 * w), (2 * w, 4 * w), (4 * w, 8 * w)]
    pairs += [(8 * w, 8 * w)] * 2
    return sum(9 * a * b + 2 * b for a, b in pairs) + 8 * w * classes + classes


def vit_size(channels: int, pixels: int, patch: int, width: int, depth: int, classes: int) -> int:
    block = 12 * width**2 + 13 * width
    patches = (pixels // patch) ** 2
    return channels * patch**2 * width + width + patches * width + depth * block + 2 * width + width * classes + classes


def stated(module: object) -> list[float]:
    return [float(found) for found in re.findall(r"(\d+\.\d+) M", " ".join((inspect.getdoc(module) or "").split()))]


def test_sizes_are_as_the_formula_and_the_docstring_say() -> None:
    small, large = size(built(ResNet9(), images(1, 28))), size(built(ResNet9(width=64, norm="batch"), images(3, 32)))
    assert (small, large) == (resnet_size(1, 16, 10), resnet_size(3, 64, 10))
    assert stated(resnet9) == [round(large / 1e6, 2), round(small / 1e6, 2)]
    transformer = size(built(ViT(), images(1, 28)))
    assert transformer == vit_size(1, 28, 4, 64, 4, 10)
    assert stated(vit) == [round(transformer / 1e6, 2)]
    assert stated(cnn.CNN) == [round(size(built(CNN(), images(1, 28))) / 1e6, 2)]


def test_a_residual_block_adds_to_its_input() -> None:
    model = built(ResNet9(width=4, norm="none"), images(1, 8)).eval()
    block = model.get_submodule("res1")
    inputs = torch.randn(2, 8, 3, 3)
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(block(inputs), inputs)


def test_patches_see_only_themselves_before_the_blocks() -> None:
    data = images(1, 8)
    model = built(ViT(width=8, depth=1, heads=2), data)
    changed = data.inputs.clone()
    changed[:, :, :4, :4] += 1
    moved = (model.get_submodule("patches")(changed) - model.get_submodule("patches")(data.inputs)).abs().amax((0, 1))
    assert (moved > 0).tolist() == [[True, False], [False, False]]
    # Learned positions tell patches apart: without them, swapping two would change nothing.
    swapped = data.inputs.roll(4, 3)
    assert not torch.allclose(model(swapped), model(data.inputs))
    nn.init.zeros_(model.positions)
    assert torch.allclose(model(swapped), model(data.inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: ViT(patch=5)(images(1, 28)), "patches of 5 do not cover 28 x 28"),
        (lambda: ViT(patch=4)(images(1, 28, 30)), "patches of 4 do not cover 28 x 30"),
        (lambda: ViT(width=10, heads=4), "4 heads do not divide width 10"),
        (lambda: ResNet9()(images(1, 7)), "at least 8 x 8"),
        (lambda: ResNet9()(_text()), "use the model gpt for text"),
        (lambda: ViT()(_text()), "use the model gpt for text"),
        (lambda: ResNet9(norm="layer"), "norm"),  # type: ignore[arg-type]
    ],
)
def test_what_does_not_fit_is_refused(make: object, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        make()  # type: ignore[operator]


def _text() -> Data:
    tokens = torch.randint(0, 5, (8, 6), generator=torch.Generator().manual_seed(0))
    return Data(tokens, tokens.flip(1), torch.arange(6), torch.arange(6, 8), tuple("abcde"))


def test_group_norm_takes_as_many_groups_as_divide_the_channels() -> None:
    groups = [m.num_groups for m in built(ResNet9(width=6), images(1, 8)).modules() if isinstance(m, nn.GroupNorm)]
    assert groups[0] == 2 and all(math.log2(g).is_integer() for g in groups)


def test_a_norm_of_one_value_is_refused_by_name() -> None:
    for data in (images(1, 8), images(3, 8)):
        for width in (1, 2):
            with pytest.raises(SpecError, match=rf"model \(cnn\): width = {width} leaves one value per group"):
                built(CNN(width=width), data)
        assert built(CNN(width=3), data)(data.inputs).shape == built(CNN(width=2, norm="none"), data)(data.inputs).shape
    assert built(CNN(width=2), images(1, 9))(images(1, 9).inputs).shape == (6, 10)
