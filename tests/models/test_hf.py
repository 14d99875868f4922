"""Hugging Face models by path: whose weights, what is fresh, what is refused, and never a download."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from expunge.base.errors import MissingError, SpecError
from expunge.core import checkpoint
from expunge.core.data import Data
from expunge.core.modules import state_digest
from expunge.data.digits import Digits
from expunge.models.hf import HF
from expunge.objectives.language_modelling import LanguageModelling

transformers = pytest.importorskip("transformers")

SIZE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
SHAPE = {"image_size": 8, "patch_size": 4, "num_channels": 1}
IMAGES = Digits(train=40, test=20)()


def texts() -> Data:
    rows = torch.randint(20, (12, 7), generator=torch.Generator().manual_seed(0))
    ids = torch.arange(12)
    return Data(rows[:, :-1], rows[:, 1:], ids[:8], ids[8:], tuple(map(str, range(20))))


def vit(folder: Path, seed: int = 0, **changes: Any) -> Path:
    torch.manual_seed(seed)
    config = transformers.ViTConfig(**{**SHAPE, "num_labels": 10, **SIZE, **changes})
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    return folder


def llama(folder: Path, seed: int = 0, **changes: Any) -> Path:
    torch.manual_seed(seed)
    facts = {"vocab_size": 20, "max_position_embeddings": 8, "tie_word_embeddings": True, **SIZE, **changes}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**facts)).save_pretrained(folder)
    return folder


def state(model: nn.Module | None) -> dict[str, torch.Tensor]:
    assert model is not None
    return model.state_dict()


def same(a: nn.Module | None, b: nn.Module | None) -> bool:
    one, other = state(a), state(b)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_original_is_the_folders_model_and_stages_can_store_it(tmp_path: Path) -> None:
    for data, save, family in (
        (IMAGES, vit, transformers.ViTForImageClassification),
        (texts(), llama, transformers.LlamaForCausalLM),
    ):
        folder = save(tmp_path / family.__name__)
        part = HF(path=str(folder))
        original, given = part.original(data), family.from_pretrained(folder)
        assert same(original, given)
        torch.manual_seed(3)
        fresh = part(data)
        assert not same(fresh, given)
        stored = checkpoint.restore(fresh, checkpoint.dump(original), "model").eval()
        inputs = data.inputs[:3]
        with torch.no_grad():
            assert torch.equal(stored(inputs).logits, given.eval()(inputs).logits)


def test_retraining_begins_with_the_base(tmp_path: Path) -> None:
    tuned, base = vit(tmp_path / "tuned", seed=1), vit(tmp_path / "base", seed=2)
    part = HF(path=str(tuned), base=str(base))
    assert same(part(IMAGES), transformers.ViTForImageClassification.from_pretrained(base))
    assert same(part.original(IMAGES), transformers.ViTForImageClassification.from_pretrained(tuned))


@pytest.mark.parametrize("bare", [True, False])
def test_a_base_without_a_head_that_fits_gets_one_by_the_seed(tmp_path: Path, bare: bool) -> None:
    tuned, base = vit(tmp_path / "tuned", seed=1), vit(tmp_path / "base", seed=2, num_labels=7)
    if bare:
        transformers.ViTForImageClassification.from_pretrained(base).vit.save_pretrained(tmp_path / "bare")
        base = tmp_path / "bare"
    part, found = HF(path=str(tuned), base=str(base)), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(part(IMAGES))
    assert same(found[0], found[1])
    differing = {name for name in state(found[0]) if not torch.equal(state(found[0])[name], state(found[2])[name])}
    assert differing == {"classifier.weight"}  # biases begin at 0
    vision = transformers.ViTForImageClassification.from_pretrained(tmp_path / "base").vit.state_dict()
    assert all(torch.equal(state(found[2])[f"vit.{name}"], tensor) for name, tensor in vision.items())


def test_what_lacks_weights_is_refused_and_not_filled_with_noise(tmp_path: Path) -> None:
    tuned, deeper = vit(tmp_path / "tuned"), vit(tmp_path / "deeper", num_hidden_layers=2)
    (deeper / "model.safetensors").write_bytes((tuned / "model.safetensors").read_bytes())
    with pytest.raises(SpecError, match=r"model\.path: .*deeper lacks vit"):
        HF(path=str(deeper)).original(IMAGES)
    with pytest.raises(SpecError, match=r"model\.base: .*tuned lacks vit"):
        HF(path=str(deeper), base=str(tuned))(IMAGES)
    narrow, wide = llama(tmp_path / "narrow"), llama(tmp_path / "wide", hidden_size=32)
    with pytest.raises(SpecError, match=r"model\.base: .*narrow lacks"):
        HF(path=str(wide), base=str(narrow))(texts())
    (tuned / "model.safetensors").rename(tuned / "pytorch_model.bin")
    with pytest.raises(SpecError, match="no weights as safetensors"):
        HF(path=str(tuned)).original(IMAGES)
    (tuned / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(SpecError, match="transformers cannot use"):
        HF(path=str(tuned)).original(IMAGES)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_labels": 7}, "num_labels is 7, the data have 10"),
        ({"num_channels": 3}, "num_channels is 3, the data have 1"),
        ({"image_size": 16}, "image_size is 16, the data have 8 x 8 pixels"),
    ],
)
def test_images_of_another_size_are_refused(tmp_path: Path, changes: dict[str, int], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        HF(path=str(vit(tmp_path, **changes)))(IMAGES)


def test_texts_of_another_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="vocab_size is 30, the data have 20"):
        HF(path=str(llama(tmp_path / "a", vocab_size=30)))(texts())
    with pytest.raises(SpecError, match="texts have 6 tokens; allowed: at most 4"):
        HF(path=str(llama(tmp_path / "b", max_position_embeddings=4)))(texts())


def padded(folder: Path, size: int = 24) -> HF:
    return HF(path=str(llama(folder, vocab_size=size)))


def test_a_padded_vocabulary_is_refused_with_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"vocab_size is 24, .* 20 labels; .*vocabulary = 24; or .*`labels`"):
        padded(tmp_path).original(texts())


def bare_texts(**changes: Any) -> Data:
    given = texts()
    return Data(given.inputs, given.targets, given.train, given.test, **changes)


@pytest.mark.parametrize(
    "data",
    [
        lambda: bare_texts(objective=LanguageModelling(vocabulary=24)),
        lambda: bare_texts().judged_by(LanguageModelling(vocabulary=24)),
        lambda: replace(bare_texts(objective=LanguageModelling(vocabulary=24)), groups=torch.arange(12)),
    ],
)
def test_with_what_the_refusal_names_a_padded_vocabulary_is_taken(tmp_path: Path, data: Callable[[], Data]) -> None:
    made = data()
    model = padded(tmp_path).original(made)
    assert model is not None
    values = made.objective.measure(model.eval(), made.batch(made.train))
    assert len(made.labels) == 24 and values["accuracy"].shape == (8,)


def test_a_vocabulary_beside_other_labels_is_refused() -> None:
    with pytest.raises(SpecError, match="vocabulary is 24, the data have 20 labels"):
        texts().judged_by(LanguageModelling(vocabulary=24))


def t5(folder: Path) -> None:
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    config = transformers.T5Config(vocab_size=20, **sizes)
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)


def test_an_encoder_decoder_is_refused_by_name(tmp_path: Path) -> None:
    t5(tmp_path)
    with pytest.raises(SpecError, match=r"model: t5 has an encoder and a decoder; allowed: a causal.*ForCausalLM"):
        HF(path=str(tmp_path)).original(texts())


def test_half_precision_is_widened(tmp_path: Path) -> None:
    folder = vit(tmp_path / "half")
    transformers.ViTForImageClassification.from_pretrained(folder).half().save_pretrained(folder)
    part = HF(path=str(folder))
    for model in (part.original(IMAGES), part(IMAGES)):
        assert {tensor.dtype for tensor in state(model).values()} == {torch.float32}


def test_nothing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def online(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr("socket.socket.connect", online)
    monkeypatch.setattr("socket.getaddrinfo", online)
    with pytest.raises(MissingError, match="hf download nobody/nothing"):
        HF(path="nobody/nothing")(IMAGES)
    with pytest.raises(MissingError, match="there is no folder"):
        HF(path=str(tmp_path / "nowhere"))(IMAGES)
    with pytest.raises(SpecError, match=r"holds no config\.json"):
        HF(path=str(tmp_path))(IMAGES)


@pytest.mark.parametrize("name", ["./nowhere", "../nowhere", "models/nowhere", ".models/nowhere"])
def test_a_missing_folder_is_not_offered_as_a_download(tmp_path: Path, name: str) -> None:
    """`models` is a folder beside the spec, so what is missing in it is a folder, too."""
    (tmp_path / "models").mkdir()
    part = HF.from_table({"path": name}, where="model", folder=tmp_path)
    with pytest.raises(MissingError, match=r"there is no folder .*nowhere/?; check the path") as refused:
        part(IMAGES)
    assert "hf download" not in str(refused.value)


def test_without_transformers_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = HF(path=str(vit(tmp_path)))
    monkeypatch.setitem(sys.modules, "transformers", None)
    for use in (part.fingerprint, lambda: part(IMAGES), lambda: part.original(IMAGES)):
        with pytest.raises(
            MissingError,
            match=r"transformers is not installed; install the extra hf: pip install -e '\.\[hf\]' in the clone",
        ):
            use()


def test_keys_follow_what_the_files_hold(tmp_path: Path) -> None:
    a, b, base = (vit(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 1), ("base", 2)))
    one, other, copy = (HF(path=str(folder)) for folder in (a, b, vit(tmp_path / "copy", seed=0)))
    # Retrained models depend on the configuration, not on the weights of what is to forget.
    assert one.fingerprint() == other.fingerprint() == copy.fingerprint()
    assert one.original_digest() == copy.original_digest() != other.original_digest()
    fine_tuned = HF(path=str(a), base=str(base))
    before = fine_tuned.fingerprint()
    assert before != one.fingerprint()
    vit(base, seed=3)
    assert fine_tuned.fingerprint() != before
    config = json.loads((a / "config.json").read_text()) | {"hidden_dropout_prob": 0.5}
    (a / "config.json").write_text(json.dumps(config))
    assert one.fingerprint() != other.fingerprint()


def test_relative_folders_count_from_the_spec_and_names_stay_names(tmp_path: Path) -> None:
    vit(tmp_path / "mine")
    part = HF.from_table({"path": "mine", "base": "google/vit"}, where="model", folder=tmp_path)
    assert part.path == str(tmp_path / "mine") and part.base == "google/vit"


def test_building_leaves_the_users_logging_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    folder = vit(tmp_path)
    capsys.readouterr()
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    HF(path=str(folder)).original(IMAGES)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capsys.readouterr() == ("", "")


def test_digests_tell_models_apart(tmp_path: Path) -> None:
    """Positive control of `same`."""
    part = HF(path=str(vit(tmp_path)))
    torch.manual_seed(0)
    assert state_digest(part(IMAGES)) != state_digest(part(IMAGES))


def test_a_weights_file_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    folder = vit(tmp_path)
    save_file({"other": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SpecError, match=r"lacks classifier\.bias and \d+ more"):
        HF(path=str(folder)).original(IMAGES)
