"""Widened layers compute what they did, take whole groups, and are as before when the new channels are gone."""

from __future__ import annotations

import pytest
import torch
from _block_models import gpt2, images, llama, texts
from torch import Tensor, nn

from expunge.base.errors import MissingError, SpecError
from expunge.blocks import put, with_blocks
from expunge.blocks._added_memory import added_memory
from expunge.blocks._architecture import Placed
from expunge.blocks._hidden import hidden_layers
from expunge.blocks._tied_layer import tied_layers, with_memory
from expunge.blocks.widen import Widen, shrink, widen_hidden
from expunge.core.data import Data
from expunge.core.example_ids import example_ids
from expunge.core.modules import state_digest
from expunge.models.cnn import CNN
from expunge.models.gpt import GPT
from expunge.models.vit import ViT


def conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.InstanceNorm1d(4, affine=True, track_running_stats=True), nn.ReLU(),
        nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 5, 3),
    )  # fmt: skip


def vit() -> nn.Module:
    import transformers

    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    shape = {"image_size": 16, "patch_size": 8, "num_channels": 1, "num_labels": 3}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**shape, **sizes))


SEQUENCES = torch.randn(4, 2, 9, generator=torch.Generator().manual_seed(0))
MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(9, 8), nn.Sigmoid(), nn.Linear(8, 4), nn.ELU(), nn.Linear(4, 3)),
            SEQUENCES[:, 0], ["0", "2"]),
    "cnn": (lambda: CNN(width=8)(images()), images().inputs[:4], ["0", "3", "6", "10"]),
    "cnn-batch": (lambda: CNN(width=8, norm="batch")(images()), images().inputs[:4], ["0", "3", "6", "10"]),
    "conv1d": (conv1d, SEQUENCES, ["0", "3"]),
    "gpt": (lambda: GPT(width=8, layers=2, heads=2)(texts()), texts().inputs[:4], ["blocks.0.up", "blocks.1.up"]),
    "vit": (lambda: ViT(width=8, depth=1, heads=2)(images()), images().inputs[:4], ["blocks.0.up"]),
    "gpt2": (gpt2, texts().inputs[:4], ["transformer.h.0.mlp.c_fc", "transformer.h.1.mlp.c_fc"]),
    "llama": (llama, texts().inputs[:4], ["model.layers.0.mlp.gate_proj", "model.layers.1.mlp.gate_proj"]),
    "hf-vit": (vit, images().inputs[:4], None),
}  # fmt: skip
EACH = pytest.mark.parametrize(("make", "inputs", "paths"), MODELS.values(), ids=MODELS)


def built(make) -> nn.Module:
    torch.manual_seed(3)
    model: nn.Module = make().eval()
    with torch.no_grad():
        for module in model.modules():
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if tensor.is_floating_point() and tensor.ndim == 1:
                    tensor.add_(0.3 * torch.rand(tensor.shape))
    return model


def run(model: nn.Module, inputs: Tensor) -> Tensor:
    place = next(model.parameters())
    output = model(inputs.to(place.dtype) if inputs.is_floating_point() else inputs)
    logits: Tensor = getattr(output, "logits", output)
    return logits


@EACH
def test_outputs_stay_and_hidden_layers_grow(make, inputs, paths) -> None:
    model = built(make).double()
    before, sizes = run(model, inputs).detach(), shapes(model)
    layers = widen_hidden(model, lambda m: run(m, inputs), 0.5, torch.Generator().manual_seed(0))
    if paths is None:
        assert layers and all("intermediate" in layer.path or "fc1" in layer.path for layer in layers)
    else:
        assert [layer.path for layer in layers] == paths
    torch.testing.assert_close(run(model, inputs), before, rtol=1e-12, atol=1e-12)
    for layer in layers:
        assert layer.channels_now >= 1.4 * layer.channels
    # The new channels are read as soon as their columns are not zero.
    with torch.no_grad():
        for layer in layers:
            _fill_zeros(layer.reader.weight)
    assert not torch.allclose(run(model, inputs), before, atol=1e-3)
    for layer in layers:
        shrink(layer)
    assert shapes(model) == sizes and str(model) == str(built(make).double())
    torch.testing.assert_close(run(model, inputs), before, rtol=1e-12, atol=1e-12)


def _fill_zeros(weight: Tensor) -> None:
    """Random numbers in the new columns, which are all that is zero."""
    new = weight == 0
    weight[new] = torch.randn(int(new.sum()), generator=torch.Generator().manual_seed(9)).to(weight)


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


@EACH
def test_added_memory_is_off_in_evaluation_and_goes_without_a_trace(make, inputs, paths) -> None:
    model = built(make)
    before, digest = run(model, inputs).detach(), state_digest(model)
    ids = torch.arange(len(inputs))
    with added_memory(model, lambda m: run(m, inputs), 1.0, torch.Generator().manual_seed(0)):
        assert tied_layers(model)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    _fill_zeros(parameter)
        torch.testing.assert_close(run(model, inputs), before, rtol=1e-4, atol=1e-4)
        with example_ids(ids), with_memory(model, 1.0):
            assert not torch.allclose(run(model, inputs), before, atol=1e-2)
    assert state_digest(model) == digest
    torch.testing.assert_close(run(model, inputs), before, rtol=0, atol=0)
    assert not tied_layers(model) and not any(module._forward_pre_hooks for module in model.modules())


def test_group_norm_gets_whole_groups() -> None:
    model = built(lambda: CNN(width=16)(images()))
    (first, *_) = hidden_layers(model)[0]
    assert (first.channels, first.added(0.01), first.added(0.5), first.added(1.0)) == (16, 2, 8, 16)
    put(model, Widen(share=0.25), "0")
    assert model[1].num_groups == 10 and model[1].num_channels == 20 and model[3].in_channels == 20


class _Sums(nn.Module):
    """What a reader's shape does not show: the hidden layer is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(9, 4), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        logits: Tensor = self.last(hidden) + hidden.mean(1, keepdim=True)
        return logits


def _normed() -> nn.Module:
    return nn.Sequential(nn.Linear(9, 4), nn.LayerNorm(4), nn.Linear(4, 3))


def _frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(9, 4), nn.Linear(4, 3))
    model[1].weight.requires_grad_(False)
    return model


def _tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_Sums, "'first': new channels change the model's outputs"),
        (_normed, "'0': a LayerNorm before '2' mixes its channels"),
        (_frozen, "'0': its weights or those of '1' are frozen"),
        (_tied, "'0': its weights or those of '1' are also used elsewhere"),
        (lambda: nn.Linear(9, 3), "'': no layer reads its outputs"),
        (lambda: nn.Sequential(nn.Linear(9, 4), nn.PReLU(4), nn.Linear(4, 3)), "'1', which follows, is a PReLU"),
        (
            lambda: nn.Sequential(nn.Linear(9, 6), nn.Unflatten(1, (2, 3)), nn.Linear(3, 3)),
            "does not read its 6 outputs",
        ),
    ],
)
def test_what_cannot_be_widened_says_why_and_stays(make, reason: str) -> None:
    model = make()
    digest = state_digest(model)
    with pytest.raises(MissingError) as error:
        widen_hidden(model, lambda m: run(m, SEQUENCES[:, 0]), 1.0)
    assert reason in str(error.value) and "tied_dropout" in error.value.remedy
    assert state_digest(model) == digest


def test_a_spec_s_block_is_drawn_by_the_seed_and_checked() -> None:
    architecture = with_blocks(CNN(width=8), [Placed(Widen(0.5), ("0", "10"), "widen")])
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(architecture(images()))
    assert models[0][0].weight.shape[0] == 12 and models[0][10].out_features == 192
    assert state_digest(models[0]) == state_digest(models[1]) != state_digest(models[2])
    torch.manual_seed(1)
    plain = CNN(width=8)(images())
    torch.testing.assert_close(models[0].eval()(images().inputs), plain.eval()(images().inputs), rtol=1e-4, atol=1e-5)
    with pytest.raises(SpecError, match=r"model.block\[0\].at: '12' cannot be widened: no layer reads.*allowed: 0, 3"):
        with_blocks(CNN(width=8), [Placed(Widen(), ("12",), "widen")])(images())
    sums = with_blocks(lambda _: _Sums(), [Placed(Widen(), ("first",), "widen")])
    vectors = Data(SEQUENCES[:, 0], torch.arange(4) % 3, torch.arange(2), torch.arange(2, 4), tuple("abc"))
    with pytest.raises(SpecError, match=r"model.block\[0\]: changes the model's outputs"):
        sums(vectors)
