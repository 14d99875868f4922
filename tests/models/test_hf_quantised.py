"""Folders of 8 and 4 bits are read as the numbers that their files hold, or refused.

Files are written here by hand, and by bitsandbytes itself where it is installed:

    pip install bitsandbytes accelerate
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.core import checkpoint
from expunge.core.data import Data
from expunge.core.hf_folder import config_of, load_folder, loaded, read_table
from expunge.core.hf_quantised import plain_weights
from expunge.models.hf import HF
from expunge.objectives.classification import Classification

transformers = pytest.importorskip("transformers")
COMMAND = "pip install bitsandbytes accelerate"
WIDTH = 64
TABLE = torch.linspace(-1, 1, 16) ** 3
OUTER = torch.linspace(0, 1, 256)


def llama() -> Any:
    sizes = {"hidden_size": WIDTH, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1}
    facts = {"vocab_size": 20, "num_hidden_layers": 1, "tie_word_embeddings": True, "max_position_embeddings": 8}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**facts, **sizes))


def gpt2() -> Any:
    # The output projection is square and transposed: its numbers alone do not show which way round it is.
    facts = {"n_positions": 8, "bos_token_id": 0, "eos_token_id": 0}
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=20, n_embd=WIDTH, n_layer=1, n_head=2, **facts)
    )


def bert() -> Any:
    sizes = {"hidden_size": WIDTH, "intermediate_size": 96, "num_attention_heads": 2, "num_hidden_layers": 1}
    return transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=20, num_labels=3, **sizes))


MODELS = {"Llama": llama, "GPT-2": gpt2, "an encoder": bert}


def layers_of(model: nn.Module) -> dict[str, Any]:
    kinds = (nn.Linear, transformers.pytorch_utils.Conv1D)
    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, kinds)}
    return {path: layer for path, layer in layers.items() if path not in ("lm_head", "classifier")}


def in_8_bits(weight: Tensor, name: str) -> tuple[dict[str, Tensor], Tensor]:
    scale = weight.abs().amax(1)
    codes = (weight / scale[:, None] * 127).round().to(torch.int8)
    layer = name.removesuffix("weight")
    parts = {name: codes, f"{layer}SCB": scale, f"{layer}weight_format": torch.tensor(0, dtype=torch.uint8)}
    return parts, codes * scale[:, None] / 127


def in_4_bits(weight: Tensor, name: str, *, nested: bool, block: int = 40) -> tuple[dict[str, Tensor], Tensor]:
    """Blocks of 40 values end within rows, and the last one is short."""
    flat, state = weight.flatten(), {"blocksize": block, "dtype": "float32", "shape": list(weight.shape)}
    scales = torch.stack([part.abs().max() for part in flat.split(block)])
    parts = {f"{name}.absmax": scales, f"{name}.quant_map": TABLE.clone()}
    if nested:
        offset = float(scales.mean())
        largest = torch.stack([part.abs().max() for part in (scales - offset).split(7)])
        codes = ((scales - offset).abs() / largest.repeat_interleave(7)[: len(scales)] * 255).round().to(torch.uint8)
        scales = OUTER[codes.long()] * largest.repeat_interleave(7)[: len(scales)] + offset
        parts |= {f"{name}.absmax": codes, f"{name}.nested_absmax": largest, f"{name}.nested_quant_map": OUTER.clone()}
        state |= {"nested_blocksize": 7, "nested_offset": offset}
    each = scales.repeat_interleave(block)[: len(flat)]
    nearest = (flat[:, None] / each[:, None] - TABLE).abs().argmin(1)
    pairs = nn.functional.pad(nearest, (0, len(nearest) % 2)).view(-1, 2).to(torch.uint8)
    facts = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    parts |= {name: (pairs[:, :1] << 4) | pairs[:, 1:], f"{name}.quant_state.bitsandbytes__nf4": facts}
    return parts, (TABLE[nearest] * each).view(weight.shape)


WAYS = {
    "8 bits": in_8_bits,
    "4 bits": lambda weight, name: in_4_bits(weight, name, nested=False),
    "4 bits, scales too": lambda weight, name: in_4_bits(weight, name, nested=True),
}


def shrunk(model: Any, folder: Path, way: str) -> dict[str, Tensor]:
    """Store the model in the format of bitsandbytes; returns the numbers of the quantised layers."""
    model.save_pretrained(folder)
    stored, numbers = load_file(folder / "model.safetensors"), {}
    for path, layer in layers_of(model).items():
        turned, name = type(layer).__name__ == "Conv1D", f"{path}.weight"
        weight = stored.pop(name)
        parts, value = WAYS[way](weight.T.contiguous() if turned else weight, name)
        stored |= parts
        numbers[name] = value.T if turned else value
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    file = folder / "config.json"
    table = json.loads(file.read_text()) | {"quantization_config": {"quant_method": "bitsandbytes"}}
    file.write_text(json.dumps(table))
    return numbers


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_a_quantised_folder_gives_the_numbers_of_its_file(
    name: str, way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = MODELS[name]()
    numbers = shrunk(made, tmp_path / "small", way)
    checkpoint.say_once.cache_clear()
    config = config_of(tmp_path / "small", "small", "model.path")
    model, lacking, surplus = loaded(type(made), config, str(tmp_path / "small"), "model.path")
    assert (lacking, surplus, type(model)) == ([], [], type(made))
    assert "8 or 4 bits; their values are used, and saved, in float32" in capsys.readouterr().err
    assert len(numbers) >= 4
    for path, parameter in model.named_parameters():
        expected = numbers.get(path, made.get_parameter(path).detach())
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=1e-9)
    # What is saved is a plain folder, and the quantised one can take its place in an audit.
    model.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in read_table(tmp_path / "saved" / "config.json")
    again = load_folder(MODELS[name](), tmp_path / "small", "audit")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_it_is_the_original_and_the_base_of_a_run(tmp_path: Path) -> None:
    numbers = shrunk(llama(), tmp_path, "8 bits")
    tokens, ids = torch.randint(20, (4, 6)), torch.arange(4)
    data = Data(tokens[:, :-1], tokens[:, 1:], ids[:2], ids[2:], tuple(map(str, range(20))))
    for part in (HF(path=str(tmp_path)), HF(base=str(tmp_path))):
        model = part.original(data) if part.path else part(data)
        assert model is not None
        for name, value in numbers.items():
            torch.testing.assert_close(model.get_parameter(name).detach(), value, rtol=1e-6, atol=1e-9)


def test_a_new_head_is_put_on_a_quantised_backbone(tmp_path: Path) -> None:
    backbone = bert().bert
    numbers = shrunk(backbone, tmp_path, "4 bits")
    tokens, ids = torch.randint(1, 20, (4, 6)), torch.arange(4)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    data = Data(inputs, ids % 3, ids[:2], ids[2:], ("a", "b", "c"), objective=Classification())
    model = HF(base=str(tmp_path))(data)
    for name, value in numbers.items():
        torch.testing.assert_close(model.get_parameter(f"bert.{name}").detach(), value, rtol=1e-6, atol=1e-9)


BROKEN = {
    "no scales": lambda stored, name: stored.pop(f"{name}.absmax"),
    "no table": lambda stored, name: stored.pop(f"{name}.quant_map"),
    "too few codes": lambda stored, name: stored.update({name: stored[name][:10].clone()}),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_weight_is_one_message(what: str, tmp_path: Path) -> None:
    numbers = shrunk(llama(), tmp_path, "4 bits")
    file = tmp_path / "model.safetensors"
    stored = load_file(file)
    BROKEN[what](stored, next(iter(numbers)))
    save_file(stored, file)
    with pytest.raises(SpecError, match=r"model\.path: .* holds a quantised weight that cannot be read"):
        plain_weights(tmp_path, llama(), "model.path")


def test_the_order_of_an_old_kernel_is_refused(tmp_path: Path) -> None:
    numbers = shrunk(llama(), tmp_path, "8 bits")
    file = tmp_path / "model.safetensors"
    stored = load_file(file)
    stored[next(iter(numbers)).replace("weight", "weight_format")] = torch.tensor(1, dtype=torch.uint8)
    save_file(stored, file)
    with pytest.raises(SpecError, match="the order of an old kernel"):
        plain_weights(tmp_path, llama(), "model.path")


THEIRS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4, scales too": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
    "8 bits": {"load_in_8bit": True},
}


@pytest.mark.parametrize("way", THEIRS)
@pytest.mark.parametrize("name", MODELS)
def test_the_numbers_are_those_of_bitsandbytes(name: str, way: str, tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes", reason=COMMAND).functional
    pytest.importorskip("accelerate", reason=COMMAND)
    made = MODELS[name]()
    made.save_pretrained(tmp_path / "plain")
    how = transformers.BitsAndBytesConfig(**THEIRS[way])
    theirs = type(made).from_pretrained(tmp_path / "plain", quantization_config=how, device_map="cpu")
    theirs.save_pretrained(tmp_path / "small")
    config = config_of(tmp_path / "small", "small", "model.path")
    ours, lacking, surplus = loaded(type(made), config, str(tmp_path / "small"), "model.path")
    assert (lacking, surplus) == ([], [])
    compared = 0
    for path, layer in layers_of(made).items():
        weight: Any = theirs.get_submodule(path).weight
        if hasattr(weight, "quant_state"):
            if weight.quant_state.shape[1] % 64:  # bitsandbytes 0.50.2 is wrong there, on the CPU
                continue
            value = functional.dequantize_4bit(weight.data, weight.quant_state)
        else:
            value = functional.int8_vectorwise_dequant(weight.data, weight.SCB)
        own = ours.get_submodule(path).weight.detach()
        torch.testing.assert_close(own, value.T if type(layer).__name__ == "Conv1D" else value, rtol=1e-6, atol=1e-8)
        compared += 1
    assert compared >= 3
