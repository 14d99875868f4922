"""What the page on Hugging Face models says of files and of padding is so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_model

from expunge.core import checkpoint
from expunge.core.collect import collect
from expunge.core.data import IGNORE

transformers = pytest.importorskip("transformers")

SIZE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def vit() -> torch.nn.Module:
    shape = {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 10}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**shape, **SIZE)).eval()


def llama() -> torch.nn.Module:
    config = transformers.LlamaConfig(vocab_size=20, use_cache=False, tie_word_embeddings=True, **SIZE)
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("build", [vit, llama])
def test_weights_by_their_own_names_are_loaded(build: type, tmp_path: Path) -> None:
    saved, inputs = build(), torch.rand(2, 1, 8, 8) if build is vit else torch.randint(20, (2, 6))
    save_model(saved, str(tmp_path / "mine.safetensors"))
    loaded = checkpoint.load(build(), tmp_path / "mine.safetensors")
    with torch.no_grad():
        assert torch.equal(loaded(inputs).logits, saved(inputs).logits)


def test_padding_on_the_right_moves_no_decision() -> None:
    """Called without a mask, as expunge does, a causal model gives every decided position what it gives with one."""
    model = llama().double()
    item = {
        "input_ids": torch.tensor([3, 4, 5, 6, 0, 0]),
        "attention_mask": torch.tensor([1, 1, 1, 1, 0, 0]),
        "labels": torch.tensor([IGNORE, 4, 5, 6, IGNORE, IGNORE]),
    }
    found = collect([item], where="forget")
    decided = found.targets != IGNORE
    assert found.targets[decided].tolist() == [4, 5, 6]
    with torch.no_grad():
        bare = model(found.inputs).logits
        masked = model(found.inputs, attention_mask=item["attention_mask"][None]).logits
    # Double precision leaves only the rounding of another kernel.
    assert torch.allclose(bare[decided], masked[decided], rtol=0, atol=1e-10)


def test_the_labels_are_shifted_as_the_model_shifts_them() -> None:
    model = llama()
    tokens = torch.randint(20, (3, 6))
    found = collect([{"input_ids": row, "labels": row} for row in tokens], where="forget")
    with torch.no_grad():
        output = model(tokens, labels=tokens)
    ours = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), found.targets.flatten())
    # Single precision, a mean over 15 tokens.
    assert ours.item() == pytest.approx(output.loss.item(), rel=1e-5)
