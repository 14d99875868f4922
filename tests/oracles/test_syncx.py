"""SynCx and its rivals: native complex arithmetic, a global shift of phases, magnitudes, sizes, and the loss."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

from expunge.base import registry
from expunge.base.errors import SpecError
from expunge.core.data import Data
from expunge.core.size import refuse_too_large
from expunge.data.tetrominoes import Tetrominoes
from expunge.models._complex_layers import PolarConv, magnitudes
from expunge.models._gated_layers import GatedConv, lengths
from expunge.models._scene_layout import LayerShape
from expunge.models.gated_complex_ae import phase_contrast
from expunge.models.syncx import SynCx
from expunge.numerics import phases
from expunge.numerics.phases import initial_phases
from expunge.objectives.reconstruction import Reconstruction

LAYERS = {
    "stride": LayerShape(2, 3, stride=2),
    "padding": LayerShape(2, 3, padding=1),
    "upsampled": LayerShape(2, 3, padding=1, upsampled=(11, 9)),
    "one pixel": LayerShape(2, 3, kernel=1),
}
NAMES = ("syncx", "rotating_features", "gated_complex_ae", "conv_ae")


@pytest.fixture(scope="module")
def scenes() -> Data:
    return Tetrominoes(train=8, test=4, cells=5, pixels=3, objects=2)().judged_by(Reconstruction())


def doubled(layer: PolarConv) -> PolarConv:
    """In double precision, with biases that are not 0; `Module.double` leaves complex weights as they are."""
    generator = torch.Generator().manual_seed(1)
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.complex128))
    layer.double()
    with torch.no_grad():
        layer.phase_bias.copy_(torch.randn(len(layer.phase_bias), generator=generator))
    return layer


def native(layer: PolarConv, z: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The paper's equations in complex arithmetic, with angles."""
    if layer.shape.upsampled:
        parts = [F.interpolate(part, layer.shape.upsampled, mode="nearest") for part in (z.abs(), z.angle())]
        z = torch.polar(*parts)
    u = F.conv2d(z, weight, stride=layer.shape.stride, padding=layer.shape.padding)
    u = torch.polar((u.abs() + bias.view(-1, 1, 1)).abs(), u.angle() + layer.phase_bias.view(-1, 1, 1))
    return (
        u if layer.threshold is None else torch.polar(torch.relu(u.abs() + layer.threshold.view(-1, 1, 1)), u.angle())
    )


@pytest.mark.parametrize("activated", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_pairs_of_real_channels_are_complex_numbers(name: str, activated: bool) -> None:
    """Forward, and backward to the input, the weights and the biases."""
    torch.manual_seed(0)
    layer = doubled(PolarConv(LAYERS[name], activated=activated))
    z = torch.randn(3, 2, 8, 7, dtype=torch.complex128, requires_grad=True)
    found = layer(torch.cat([z.real, z.imag], 1))
    found = torch.complex(*found.chunk(2, 1))
    expected = native(layer, z, layer.weight, layer.magnitude_bias)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    inputs = [z, layer.weight, layer.magnitude_bias, layer.phase_bias]
    ours, theirs = (
        torch.autograd.grad((out * out.conj() * (1 + 0.3j * out)).real.sum(), inputs) for out in (found, expected)
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("real", [False, True])
def test_a_global_shift_of_phases_shifts_every_output(scenes: Data, real: bool) -> None:
    torch.manual_seed(0)
    net = SynCx(width=6, weights="real" if real else "complex")(scenes).double().eval()
    images = scenes.inputs[:4].double()
    start = initial_phases("uniform", images.shape, torch.Generator().manual_seed(0))
    plain, shifted = (net.iterate(images, phases=start.double() + by) for by in (0.0, 1.0))
    for one, two in zip(plain, shifted, strict=True):
        for a, b in zip(one, two, strict=True):
            z, turned = (torch.complex(*pairs.chunk(2, 1)) for pairs in (a, b))
            torch.testing.assert_close(turned, z * complex(math.cos(1), math.sin(1)), rtol=1e-6, atol=1e-6)
    # Another pattern of phases gives other outputs: the check above does not pass because phases are ignored.
    other = net.iterate(images, phases=torch.zeros_like(start))
    assert not torch.allclose(magnitudes(other[-1].output), magnitudes(plain[-1].output), atol=1e-3)


@pytest.mark.parametrize("bias", [-10.0, -0.3])
def test_magnitudes_are_never_negative(bias: float) -> None:
    """Where |u| + b is below 0 the phase stays; a negative magnitude would turn it by pi."""
    torch.manual_seed(0)
    layer = PolarConv(LayerShape(3, 4, padding=1), activated=False)
    nn.init.constant_(layer.magnitude_bias, bias)
    pairs = torch.randn(2, 6, 8, 8)
    out, product = layer(pairs), F.conv2d(pairs, layer.kernel(torch.float32), padding=1)
    along = (out * product).unflatten(1, (2, -1)).sum(1)
    assert (along > 0).all() and (magnitudes(product) < -bias).any()
    torch.testing.assert_close(magnitudes(out), (magnitudes(product) + bias).abs(), rtol=1e-4, atol=1e-4)


def test_the_size_is_the_papers() -> None:
    """481,152 complex weights at 35 x 35 and width 64 (official code), beside biases and thresholds."""
    data = Tetrominoes(train=1, test=1)().judged_by(Reconstruction())
    net = SynCx(width=64)(data)
    assert sum(p.numel() for p in net.parameters() if p.is_complex()) == 481_152
    assert net(data.inputs).shape == (2, 3, 3, 35, 35)


def reals(net: nn.Module) -> int:
    return sum(p.numel() * (2 if p.is_complex() else 1) for p in net.parameters())


def test_rivals_have_about_as_many_weights(scenes: Data) -> None:
    sizes = {name: reals(registry.load("model", name)()(scenes)) for name in NAMES}
    assert max(sizes.values()) < 1.12 * min(sizes.values()), sizes


@pytest.mark.parametrize("law", ["von_mises", "uniform", "zero"])
def test_laws_of_initial_phases(law: str) -> None:
    drawn = initial_phases(law, (4000,), torch.Generator().manual_seed(0)).numpy()
    if law == "zero":
        assert not drawn.any()
        return
    true = stats.vonmises(1.0) if law == "von_mises" else stats.uniform(-math.pi, 2 * math.pi)
    assert stats.kstest(drawn, true.cdf).pvalue > 0.01
    assert abs(drawn).max() <= math.pi


def test_phases_are_drawn_in_training_and_fixed_in_evaluation(scenes: Data) -> None:
    net = SynCx(width=2)(scenes)
    images = scenes.inputs[:2]
    assert not torch.equal(net(images), net(images))
    net.eval()
    assert torch.equal(net(images), net(images))


def test_every_reconstruction_counts_in_the_loss_and_the_last_is_measured(scenes: Data) -> None:
    torch.manual_seed(0)
    net, batch = SynCx(width=2)(scenes).eval(), scenes.batch(scenes.train)
    outputs, images = net(batch.inputs).double(), batch.inputs.double()
    expected = (outputs - images.unsqueeze(1)).square().flatten(2).mean(2)
    torch.testing.assert_close(scenes.objective.losses(net, batch), expected.mean(1))
    explained = 1 - expected[:, -1] / scenes.objective.variance
    torch.testing.assert_close(scenes.objective.measure(net, batch)["r_squared"], explained)


@pytest.mark.parametrize("polar", [False, True])
def test_the_gate_compares_the_sum_with_the_sum_of_lengths(polar: bool) -> None:
    """Features that agree in direction pass the gate with their whole length, opposite ones with half of chi."""
    layer = GatedConv(LayerShape(2, 1, kernel=1), 2, polar=polar).eval()
    for parameter in layer.parameters():
        nn.init.ones_(parameter) if parameter.ndim > 1 else nn.init.zeros_(parameter)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    nn.init.ones_(layer.norm.weight)
    agree, differ = torch.zeros(1, 2, 2, 1, 1), torch.zeros(1, 2, 2, 1, 1)
    agree[0, 0] = 1.0
    differ[0, 0, 0], differ[0, 0, 1] = 1.0, -0.5
    assert lengths(layer(agree)).item() == pytest.approx(2.0, rel=1e-4)
    # |psi| is 0.5 and chi 1.5.
    assert lengths(layer(differ)).item() == pytest.approx(1.0, rel=1e-4)


def test_the_contrast_is_low_where_alike_pixels_have_alike_phases() -> None:
    generator = torch.Generator().manual_seed(0)
    kind = torch.arange(64).view(1, 8, 8) % 2
    size = torch.where(kind.unsqueeze(1) == torch.arange(2).view(1, 2, 1, 1), 1.0, 0.05)

    def contrast(phase: torch.Tensor) -> float:
        turned = torch.stack([phase.cos(), phase.sin()], 1)[:, :, None] * size.unsqueeze(1)
        return float(phase_contrast(turned, 20, torch.Generator().manual_seed(1)))

    bound, random = kind * math.pi, torch.rand(1, 8, 8, generator=generator) * 2 * math.pi
    assert contrast(bound) < 0.01 < 3 < contrast(random)


@pytest.mark.parametrize("name", NAMES)
def test_images_that_the_strides_do_not_fit_are_refused(name: str) -> None:
    model = registry.load("model", name)(width=2)
    small = Tetrominoes(train=1, test=1, cells=7, pixels=2, objects=1)().judged_by(Reconstruction())
    with pytest.raises(SpecError, match="at least 15 x 15"):
        model(small)
    with pytest.raises(SpecError, match="reconstruction"):
        model(Tetrominoes(train=1, test=1)())
    flat = Data(
        torch.randn(4, 20), torch.zeros(4).long(), torch.arange(2), torch.arange(2, 4), objective=Reconstruction()
    )
    with pytest.raises(SpecError, match="images"):
        model(flat)


@pytest.mark.parametrize("settings", [{}, {"weights": "real"}, {"bottleneck": False}, {"extra": True}])
def test_a_build_without_memory_leaves_nothing_behind(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run builds each model on the device `meta` first; the laws of phases are kept from one build to the next."""
    monkeypatch.setattr(phases, "_quantiles", cache(phases._quantiles.__wrapped__))
    data = Tetrominoes(train=2, test=1, cells=5, pixels=3, objects=1)().judged_by(Reconstruction())
    refuse_too_large(SynCx(width=1, **settings), data, "model")
    net = SynCx(width=1, **settings)(data)
    assert not net.start.is_meta and net(data.inputs).isfinite().all()
