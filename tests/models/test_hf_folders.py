"""Folders of every form that `save_pretrained` and PEFT write: the audited model has transformers' logits to the bit."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from expunge.base.errors import MissingError, SpecError
from expunge.core import checkpoint
from expunge.core.data import Data
from expunge.models.hf import HF
from expunge.objectives.classification import Classification
from helpers import Table, finished, run

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

TOKENS = torch.randint(20, (12, 7), generator=torch.Generator().manual_seed(0))
IDS = torch.arange(12)
MASK = (torch.arange(7) < torch.tensor([[7, 4, 5]]).T.repeat(4, 1)).long()


def texts() -> Data:
    return Data(TOKENS[:, :-1], TOKENS[:, 1:], IDS[:8], IDS[8:], tuple(map(str, range(20))))


def classified() -> Data:
    inputs = {"input_ids": TOKENS, "attention_mask": MASK}
    return Data(inputs, IDS % 3, IDS[:8], IDS[8:], ("a", "b", "c"), objective=Classification())


def gpt2(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    facts = {"vocab_size": 20, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
    config = transformers.GPT2Config(**facts | {"bos_token_id": 0, "eos_token_id": 0} | changes)
    return transformers.GPT2LMHeadModel(config)


def llama(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    facts = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1, "tie_word_embeddings": True}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**facts | heads | changes))


def bert(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    facts = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 8}
    heads = {"num_attention_heads": 2, "num_hidden_layers": 1, "num_labels": 3}
    return transformers.BertForSequenceClassification(transformers.BertConfig(**facts | heads | changes))


def outputs(model: nn.Module, data: Data) -> torch.Tensor:
    with torch.no_grad():
        return data.objective.prediction(model.eval(), data.batch(IDS))


FOLDERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Data], dict[str, Any]]] = {
    "GPT-2, whose layers are transposed": (gpt2, texts, {}),
    "Llama, tied, with fewer heads of keys": (llama, texts, {}),
    "an encoder with a mask": (bert, classified, {}),
    "shards": (llama, texts, {"max_shard_size": "2KB"}),
    "bfloat16": (lambda: llama().bfloat16(), texts, {}),
    "bfloat16 in shards": (lambda: gpt2().bfloat16(), texts, {"max_shard_size": "2KB"}),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_the_audited_model_is_that_of_from_pretrained(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, data_of, options = FOLDERS[name]
    made, data = make(), data_of()
    made.save_pretrained(tmp_path, **options)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == ("max_shard_size" in options)
    capsys.readouterr()
    checkpoint.say_once.cache_clear()
    part = HF(path=str(tmp_path))
    original = part.original(data)
    assert original is not None
    said = capsys.readouterr().err
    assert ("bfloat16; all weights are used as float32" in said) == ("bfloat16" in name)
    expected = outputs(type(made).from_pretrained(tmp_path).float(), data)
    assert torch.equal(outputs(original, data), expected)
    stored = checkpoint.restore(part(data), checkpoint.dump(original), "model")
    assert torch.equal(outputs(stored, data), expected)


def test_an_encoder_sees_the_mask_and_padding_changes_nothing() -> None:
    data, model = classified(), bert(initializer_range=0.5).eval()
    changed = TOKENS.clone()
    changed[MASK == 0] = 3
    other = Data(
        {"input_ids": changed, "attention_mask": MASK},
        data.targets,
        data.train,
        data.test,
        data.labels,
        objective=Classification(),
    )
    torch.testing.assert_close(outputs(model, data), outputs(model, other), rtol=1e-5, atol=1e-6)
    plain = Data(TOKENS, data.targets, data.train, data.test, data.labels, objective=Classification())
    assert float((outputs(model, data) - outputs(model, plain)).abs().max()) > 1e-4


@pytest.mark.parametrize(
    ("make", "data", "words"),
    [
        (lambda: bert(num_labels=4), classified, "num_labels is 4, the data have 3"),
        (lambda: bert(max_position_embeddings=6), classified, "texts have 7 tokens; allowed: at most 6"),
        (lambda: llama(vocab_size=30), texts, "vocab_size is 30, the data have 20"),
    ],
)
def test_a_folder_of_another_size_is_refused(
    tmp_path: Path, make: Callable[[], nn.Module], data: Callable[[], Data], words: str
) -> None:
    make().save_pretrained(tmp_path)
    with pytest.raises(SpecError, match=words):
        HF(path=str(tmp_path)).original(data())


BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "code": (
        {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}},
        r"model\.path: the model in .* is code of its repository, which is never run; .*my_models:build",
    ),
    "code without a type": ({"model_type": None, "auto_map": {"AutoConfig": "mine.Config"}}, "is never run"),
    "GPTQ": (
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        r"model\.path: the weights of .* are quantised by gptq; .*unlearn by an adapter",
    ),
    "AWQ": ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "quantised by awq"),
    "nobody knows what": ({"quantization_config": True}, "quantised by a library"),
    "GGUF": ({"quantization_config": {"quant_method": "gguf"}}, "quantised by gguf"),
    "an encoder-decoder": ({"model_type": "t5", "is_encoder_decoder": True}, "has an encoder and a decoder"),
}


@pytest.mark.parametrize("role", ["path", "base", "base alone"])
@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_configuration_that_cannot_be_used_is_one_message(tmp_path: Path, case: str, role: str) -> None:
    changes, words = BAD_CONFIGS[case]
    for name in ("good", "bad"):
        llama().save_pretrained(tmp_path / name)
    file = tmp_path / "bad" / "config.json"
    file.write_text(json.dumps({k: v for k, v in (json.loads(file.read_text()) | changes).items() if v is not None}))
    (tmp_path / "bad" / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    named = {"path": {"path": "bad"}, "base": {"path": "bad", "base": "good"}, "base alone": {"base": "bad"}}[role]
    part = HF(**{key: str(tmp_path / value) for key, value in named.items()})
    with pytest.raises(
        SpecError, match=words.replace("model\\.path", f"model\\.{'base' if role == 'base alone' else 'path'}")
    ):
        part(texts())
    assert not (tmp_path / "ran").exists()


def with_lora(model: nn.Module, **changes: Any) -> Any:
    facts = {
        "r": 2,
        "lora_alpha": 4,
        "target_modules": "all-linear",
        "fan_in_fan_out": isinstance(model, transformers.GPT2LMHeadModel),
    }
    tuned = peft.get_peft_model(model, peft.LoraConfig(**facts | changes)).eval()
    torch.manual_seed(1)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            nn.init.normal_(parameter, std=0.3)
    return tuned


ADAPTERS: dict[str, tuple[Callable[..., nn.Module], Callable[[], Data], dict[str, Any]]] = {
    "GPT-2": (gpt2, texts, {}),
    "Llama": (llama, texts, {}),
    "rank-stabilised, of two layers": (llama, texts, {"use_rslora": True, "target_modules": ["q_proj", "down_proj"]}),
    "with a classifier of its own": (
        bert,
        classified,
        {"modules_to_save": ["classifier"], "target_modules": ["query"]},
    ),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_is_merged_into_its_base(name: str, tmp_path: Path) -> None:
    make, data_of, changes = ADAPTERS[name]
    base, data = make(), data_of()
    base.save_pretrained(tmp_path / "base")
    tuned = with_lora(base, **changes)
    tuned.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = data.objective.prediction(tuned, data.batch(IDS))
    part = HF(path=str(tmp_path / "base"), adapter=str(tmp_path / "adapter"))
    original, plain = part.original(data), make()
    assert original is not None and type(original) is type(plain)
    torch.testing.assert_close(outputs(original, data), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(outputs(original, data), outputs(tuned.merge_and_unload(), data))
    assert float((outputs(plain, data) - expected).abs().max()) > 0.01
    assert all(p.requires_grad for p in original.parameters())
    assert original.state_dict().keys() == plain.state_dict().keys()
    # Retrained models start from what was there before the adapter.
    assert all(torch.equal(t, part(data).state_dict()[n]) for n, t in plain.state_dict().items())


def adapter_at(folder: Path, base: nn.Module, **changes: Any) -> Path:
    with_lora(base, **changes).save_pretrained(folder)
    return folder


def renamed(folder: Path) -> Path:
    adapter_at(folder, llama())
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    return folder


def cut(folder: Path) -> Path:
    adapter_at(folder, llama())
    (folder / "adapter_model.safetensors").write_bytes(b"cut short")
    return folder


def another_kind(folder: Path) -> Path:
    tuned = peft.get_peft_model(llama(), peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    tuned.save_pretrained(folder)
    return folder


def no_adapter(folder: Path) -> Path:
    llama().save_pretrained(folder)
    return folder


UNFIT: dict[str, tuple[Callable[[Path], Path], str]] = {
    "of a wider base": (
        lambda f: adapter_at(f, llama(hidden_size=32)),
        r"model\.adapter: the adapter .* does not fit the model",
    ),
    "of a deeper base": (lambda f: adapter_at(f, llama(num_hidden_layers=2)), "layers.1.* has no counterpart"),
    "of another architecture": (lambda f: adapter_at(f, gpt2()), "does not fit the model"),
    "a pickle": (renamed, r"holds no adapter_model\.safetensors; .* a pickle can run code"),
    "cut short": (cut, "model.adapter: not a complete safetensors file"),
    "of another kind": (another_kind, "of the kind IA3; allowed: LORA"),
    "no adapter": (no_adapter, r"holds no adapter_config\.json"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_an_adapter_that_does_not_fit_is_refused(name: str, tmp_path: Path) -> None:
    make, words = UNFIT[name]
    llama().save_pretrained(tmp_path / "base")
    part = HF(path=str(tmp_path / "base"), adapter=str(make(tmp_path / "adapter")))
    with pytest.raises(SpecError, match=words):
        part.original(texts())


def test_a_shallower_adapter_is_refused_too(tmp_path: Path) -> None:
    """It would leave a layer of the base without the update that the configuration promises."""
    llama(num_hidden_layers=2).save_pretrained(tmp_path / "base")
    part = HF(
        path=str(tmp_path / "base"), adapter=str(adapter_at(tmp_path / "adapter", llama(), target_modules=["q_proj"]))
    )
    with pytest.raises(SpecError, match=r"does not fit the model .*layers\.1"):
        part.original(texts())


def test_missing_folders_and_libraries_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama().save_pretrained(tmp_path / "base")
    with pytest.raises(MissingError, match=r"model\.adapter: there is no folder .*nowhere"):
        HF(path=str(tmp_path / "base"), adapter=str(tmp_path / "nowhere")).original(texts())
    adapter = adapter_at(tmp_path / "adapter", llama())
    with pytest.raises(
        SpecError, match=r"it is an adapter: in a spec, .* takes its base as path and this folder as adapter"
    ):
        HF(path=str(adapter)).original(texts())
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingError, match="peft is not installed; install the extra hf"):
        HF(path=str(tmp_path / "base"), adapter=str(adapter)).original(texts())


def test_what_the_adapter_holds_decides_the_original_and_not_the_references(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "base")
    first = adapter_at(tmp_path / "first", llama())
    second = adapter_at(tmp_path / "second", llama(), lora_alpha=8)
    parts = [HF(path=str(tmp_path / "base"), adapter=str(folder)) for folder in (first, second)]
    assert parts[0].fingerprint() == parts[1].fingerprint()
    assert parts[0].original_digest() != parts[1].original_digest() != HF(path=str(tmp_path / "base")).original_digest()
    assert set(parts[0].input_files()["adapter"]) == {"adapter_config.json", "adapter_model.safetensors"}
    relative = HF.from_table({"path": "base", "adapter": "first"}, where="model", folder=tmp_path)
    assert relative.adapter == str(first)
    assert "adapter" not in HF(path="base").settings()


def test_an_adapter_in_a_spec_from_end_to_end(tmp_path: Path) -> None:
    import numpy as np

    rows = TOKENS.numpy()
    np.savez(tmp_path / "texts.npz", x=rows[:8, :-1], y=rows[:8, 1:], tx=rows[8:, :-1], ty=rows[8:, 1:])
    (tmp_path / "forget.txt").write_text("0\n1\n2")
    llama().save_pretrained(tmp_path / "base")
    tuned = with_lora(llama())
    tuned.save_pretrained(tmp_path / "adapter")
    table: Table = {
        "name": "texts",
        "seeds": [0],
        "data": {"name": "arrays", "path": "texts.npz"},
        "objective": {"name": "language_modelling", "vocabulary": 20},
        "model": {"name": "hf", "path": "base", "adapter": "adapter"},
        "train": {"epochs": 1, "learning_rate": 1e-2, "adapter": {"rank": 2}},
        "forget": {"name": "indices", "path": "forget.txt"},
        "method": [{"name": "npo", "epochs": 1, "learning_rate": 1e-2, "adapter": {"rank": 2}}],
    }
    out = tmp_path / "runs"
    finished(run(table, out))
    from safetensors.torch import load_file

    stored = load_file(out / "texts" / "models" / "original-s0.safetensors")
    merged = tuned.merge_and_unload().state_dict()
    assert all(torch.equal(merged[name], tensor) for name, tensor in stored.items())
    assert json.loads((out / "texts" / "spec.json").read_text())["model"]["adapter"] == "adapter"


DATA = """
import torch
from expunge.core.data import Data
from expunge.objectives.classification import Classification

def load():
    ids = torch.arange(12)
    tokens = torch.randint(20, (12, 7), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(7) < torch.tensor([[7, 4, 5]]).T.repeat(4, 1)).long()
    return Data({"input_ids": tokens, "attention_mask": mask}, ids % 3, ids[:8], ids[8:], ("a", "b", "c"),
                objective=Classification())
"""


def test_an_encoder_with_masks_in_a_spec(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path / "mine")
    (tmp_path / "masked_texts.py").write_text(DATA)
    (tmp_path / "forget.txt").write_text("0\n1\n2")
    table: Table = {
        "name": "encoder",
        "seeds": [0],
        "gallery": True,
        "data": {"name": "masked_texts:load"},
        "model": {"name": "hf", "path": "mine", "base": "mine"},
        "train": {"epochs": 1, "learning_rate": 1e-6},
        "forget": {"name": "indices", "path": "forget.txt"},
        "method": [{"name": "npo", "epochs": 1, "adapter": {"rank": 2}}],
        "attack": [{"name": "relearn", "epochs": 1}],
    }
    finished(run(table, tmp_path / "runs"))


def test_a_model_that_peft_has_wrapped_is_unlearned_in_its_adapter() -> None:
    import expunge

    model, rows = with_lora(llama()), [{"input_ids": row, "labels": row} for row in TOKENS]
    case = expunge.case(model, forget=rows[:3], retain=rows[3:8], test=rows[8:])
    done = expunge.unlearn(case, "npo", epochs=1, learning_rate=1e-2)
    before, after = (dict(m.named_parameters()) for m in (model, done.model))
    assert (
        {name for name in before if not torch.equal(before[name], after[name])}
        == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        != set()
    )
