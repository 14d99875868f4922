"""Codebooks in models of the library and of Hugging Face: where they go, and that a spec's messages name the place."""

from __future__ import annotations

import pytest
import torch
from _block_models import gpt2, images, llama, texts

from expunge.base.errors import SpecError
from expunge.blocks import put, with_blocks
from expunge.blocks._architecture import Placed
from expunge.blocks.codebook import Codebook, codebook_layers
from expunge.models.cnn import CNN
from expunge.models.gpt import GPT
from expunge.models.vit import ViT

PLACES = {
    "cnn, channels": (lambda: CNN(width=8, hidden=8)(images()), images, "6", [32]),
    "gpt, attention": (lambda: GPT(width=8, layers=2, heads=2)(texts()), texts, "blocks.*.out", [8, 8]),
    "vit, attention": (lambda: ViT(width=8, depth=1, heads=2)(images()), images, "blocks.*.out", [8]),
    "gpt2, attention": (gpt2, texts, "transformer.h.*.attn", [8, 8]),
    "llama, attention": (llama, texts, "model.layers.*.self_attn", [8, 8]),
}


@pytest.mark.parametrize("name", PLACES)
def test_what_communicates_gets_codes(name):
    build, data, at, widths = PLACES[name]
    if "gpt2" in name or "llama" in name:
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    given = data()
    model = with_blocks(lambda _: build(), [Placed(Codebook(codes=4, heads=2), (at,), "codebook")])(given).train()
    layers = list(codebook_layers(model).values())
    assert [layer.width for layer in layers] == widths
    given.objective.loss(model, given.batch(given.train)).backward()
    assert all(bool(layer.started) and layer.codebook.grad is not None for layer in layers)
    sizes = []
    for layer in layers:
        layer.register_forward_hook(lambda own, _, output: sizes.append(codes_in(own, output)))
    given.objective.prediction(model.eval(), given.batch(given.train))
    assert len(sizes) == len(widths) and max(sizes) <= 4


def codes_in(layer, output):
    """Number of different segments."""
    return len(output.movedim(layer.dim, -1).reshape(-1, layer.width // 2).unique(dim=0))


def test_a_place_that_does_not_fit_is_named():
    architecture = with_blocks(
        lambda _: CNN(width=8, hidden=9)(images()), [Placed(Codebook(heads=2), ("10",), "codebook")]
    )
    with pytest.raises(SpecError, match=r"model.block\[0\].heads: 2 heads do not divide the 9 channels behind '10'"):
        architecture(images())
    with pytest.raises(SpecError, match="no module matches 'attention'"):
        put(CNN(width=8, hidden=8)(images()), Codebook(), "attention")
