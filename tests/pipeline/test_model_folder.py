"""`--save`: what is handed over is what was audited, whole or not at all, and with a card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, load_model

from expunge.base.errors import SpecError
from expunge.core import hf_save
from expunge.core.adapter import Adapter
from expunge.core.peft_save import unmerged
from expunge.core.tokens import PAD, read_tokenizer, train_tokenizer
from helpers import Table, cli, finished, run, snapshot, temporaries, tiny, write_spec

transformers = pytest.importorskip("transformers")

GPT2 = {"vocab_size": 20, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
LLAMA = {"vocab_size": 20, "max_position_embeddings": 16, "hidden_size": 16, "num_hidden_layers": 1,
         "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 32}  # fmt: skip


def gpt2() -> torch.nn.Module:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))


def llama(*, tied: bool = True) -> torch.nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, tie_word_embeddings=tied))


MODELS: dict[str, tuple[Callable[[], torch.nn.Module], dict[str, Any]]] = {
    "gpt2": (gpt2, {}),
    "llama with grouped queries": (lambda: llama(tied=False), {}),
    "tied llama": (llama, {}),
    "in several files": (lambda: llama(tied=False), {"max_shard_size": "4KB"}),
    "in bfloat16": (lambda: llama().to(torch.bfloat16), {}),
}


def spec(path: str, **changes: object) -> Table:
    return {
        "name": "texts",
        "seeds": [0],
        "data": {"name": "arrays", "path": "texts.npz"},
        "model": {"name": "hf", "path": path},
        "train": {"epochs": 1, "learning_rate": 1e-3},
        "forget": {"name": "indices", "path": "forget.txt"},
        "method": [{"name": "finetune", "epochs": 1, "batch_size": 8, "learning_rate": 0.01}],
    } | changes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("handed")
    rows = np.random.default_rng(0).integers(0, 20, (24, 9))
    rows[0, :2] = (0, 19)
    np.savez(path / "texts.npz", x=rows[:16, :-1], y=rows[:16, 1:], tx=rows[16:, :-1], ty=rows[16:, 1:])
    (path / "forget.txt").write_text("0\n1\n2\n3\n")
    for name, (make, options) in MODELS.items():
        torch.manual_seed(1)
        make().save_pretrained(path / name, **options)
    return path


def unlearned(folder: Path, name: str, target: Path, *more: object) -> Path:
    table = write_spec(folder, spec(name))
    finished(cli("unlearn", table, "--save", target, "--out", folder / "runs" / name, *more))
    return target


@pytest.mark.parametrize("name", MODELS)
def test_from_pretrained_gives_the_audited_logits_bit_for_bit(folder: Path, tmp_path: Path, name: str) -> None:
    target = unlearned(folder, name, tmp_path / "model")
    family = type(MODELS[name][0]())
    shipped = family.from_pretrained(target)
    assert {p.dtype for p in shipped.parameters()} == {torch.float32}
    weights = stored(folder / "runs" / name)
    # As a run makes the models that it audits: from the configuration of the user's folder.
    config = transformers.AutoConfig.from_pretrained(folder / name)
    audited = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    load_model(audited, weights)
    tokens = torch.from_numpy(np.load(folder / "texts.npz")["x"])
    with torch.no_grad():
        assert torch.equal(shipped(tokens).logits, audited(tokens).logits)
        given = family.from_pretrained(folder / name).float().eval()
        assert not torch.equal(shipped(tokens).logits, given(tokens).logits)
    # What generates needs the cache, which training switches off.
    assert shipped.config.use_cache == transformers.AutoConfig.from_pretrained(folder / name).use_cache is True
    assert finished(cli("verify", target)).out.strip().endswith("digests agree")


def stored(out: Path) -> Path:
    """The weights that `unlearn` stored."""
    return next(p for p in (out / "cache").glob("*/weights.safetensors")
                if "unlearn finetune" in (p.parent / "stage.json").read_text())  # fmt: skip


MASKED = """
import torch
from expunge.core.data import Data
from expunge.objectives.classification import Classification

def load():
    ids = torch.arange(12)
    tokens = torch.randint(20, (12, 7), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(7) < torch.tensor([[7, 4, 5]]).T.repeat(4, 1)).long()
    inputs = {"input_ids": tokens, "attention_mask": mask}
    return Data(inputs, ids % 3, ids[:8], ids[8:], ("a", "b", "c"), objective=Classification())
"""


def test_an_encoder_is_handed_over_with_its_logits(tmp_path: Path) -> None:
    config = transformers.BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                     intermediate_size=24, max_position_embeddings=8, num_labels=3)  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "mine")
    (tmp_path / "masked_texts_of_mine.py").write_text(MASKED)
    (tmp_path / "forget.txt").write_text("0\n1\n2")
    table = write_spec(tmp_path, spec("mine", data={"name": "masked_texts_of_mine:load"}))
    finished(cli("unlearn", table, "--save", tmp_path / "model", "--out", tmp_path / "runs"))
    audited = transformers.BertForSequenceClassification(config).eval()
    load_model(audited, stored(tmp_path / "runs"))
    shipped = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "model")
    tokens, mask = torch.randint(20, (3, 7)), torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 5 + [0] * 2])
    with torch.no_grad():
        assert torch.equal(shipped(tokens, attention_mask=mask).logits, audited(tokens, attention_mask=mask).logits)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_a_model_with_adapters_is_handed_over_merged(folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(3)
    tuned = peft.get_peft_model(llama(), peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    tuned.save_pretrained(folder / "adapter")
    table = spec("tied llama", name="adapted", model={"name": "hf", "path": "tied llama", "adapter": "adapter"})
    table["method"] = [{**table["method"][0], "adapter": {"rank": 2}}]
    out = tmp_path / "runs"
    finished(cli("unlearn", write_spec(folder, table), "--save", tmp_path / "model", "--out", out))
    shipped = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "model")
    audited = llama().eval()
    load_model(audited, stored(out))
    tokens = torch.from_numpy(np.load(folder / "texts.npz")["x"])
    with torch.no_grad():
        assert torch.equal(shipped(tokens).logits, audited(tokens).logits)
    assert not any("lora" in name or "adapter" in name for name in shipped.state_dict())


AUDITED, BESIDE = "texts-finetune-adapter", "finetune+adapter"


def figures(record: Path, label: str) -> dict[str, float]:
    """The value of each metric of a model before any attack and after it."""
    rows = map(json.loads, (record / "results.jsonl").read_text().splitlines())
    return {f"{row['metric']} {row['split']} {row['attack']}": row["value"] for row in rows if row["model"] == label}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_the_adapter_is_handed_over_too_and_audited_on_its_base(folder: Path, tmp_path: Path) -> None:
    peft, name = pytest.importorskip("peft"), "tied llama"
    out, target = tmp_path / "runs", tmp_path / "saved"
    table = spec(name)
    table["method"] = [{**table["method"][0], "adapter": {"rank": 3, "alpha": 7.0}}]
    written = write_spec(folder, table)
    done = finished(cli("run", written, "--out", out, "--workers", 1, "--save", target, "--json"))
    kept = target / "finetune-adapter"
    assert json.loads(done.out)["saved"] == [str(target / "finetune"), str(kept)]
    family = type(MODELS[name][0]())
    merged, base = family.from_pretrained(target / "finetune"), family.from_pretrained(folder / name)
    tokens = torch.from_numpy(np.load(folder / "texts.npz")["x"])
    with torch.no_grad():
        expected, before = merged(tokens).logits, base(tokens).logits
        actual = peft.PeftModel.from_pretrained(base, kept)(tokens).logits
    assert float((expected - before).abs().max()) > 0.01
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert "Without the adapter, that is the model you have." in (kept / "README.md").read_text().replace("\n", " ")
    finished(cli("verify", kept))
    # Beside each other, the two are the same model up to rounding.
    merged_row, beside = (figures(out / "texts", row) for row in ("finetune", BESIDE))
    assert beside == pytest.approx({key: merged_row[key] for key in beside}, abs=1e-6)
    finished(cli("audit", written, kept, "--out", out, "--workers", 1))
    own, other = (figures(out / record, label) for record, label in (("texts", "finetune"), (AUDITED, kept.name)))
    assert own and own == pytest.approx(other, abs=1e-3)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_base_and_adapter_are_a_second_row_that_is_not_judged(folder: Path, tmp_path: Path) -> None:
    peft, out, name = pytest.importorskip("peft"), tmp_path / "runs", "in bfloat16"
    table = spec(name, audit=[{"name": "distance"}], attack=[{"name": "prune"}])
    adapter = {"rank": 3, "alpha": 7.0}
    table["method"] = [{**table["method"][0], "adapter": adapter}]
    done = finished(cli("run", write_spec(folder, table), "--out", out, "--workers", 1, "--save", tmp_path / "saved"))
    shown = [line.split() for line in done.out.splitlines() if line.startswith("finetune")]
    assert [line[0] for line in shown if len(line) > 2][:2] == ["finetune", BESIDE]
    assert [verdict["model"] for verdict in json.loads((out / "texts" / "verdicts.json").read_text())] == ["finetune"]
    merged, beside = (figures(out / "texts", row) for row in ("finetune", BESIDE))
    # No attack, and no audit of weights.
    assert set(beside) == {key for key in merged if key.endswith("None") and "distance" not in key}
    # The base is in bfloat16, as in the user's folder, and the merged model is not.
    assert max(abs(beside[key] - merged[key]) for key in beside if "probability" in key) > 2e-6
    # It is what PEFT runs.
    family, kept = type(MODELS[name][0]()), tmp_path / "saved" / "finetune-adapter"
    theirs = peft.PeftModel.from_pretrained(family.from_pretrained(folder / name), kept).eval()
    plain, base = family.from_pretrained(tmp_path / "saved" / "finetune"), family.from_pretrained(folder / name).float()
    ours = unmerged(plain, base, Adapter(**adapter), torch.bfloat16).eval()
    tokens = torch.from_numpy(np.load(folder / "texts.npz")["x"])
    with torch.no_grad():
        expected, actual = theirs(tokens).logits, ours(tokens).logits
        rounded = float((actual - plain(tokens).logits).abs().max())
    assert actual.dtype == expected.dtype == torch.bfloat16
    assert float((actual - expected).abs().max()) < rounded


@pytest.mark.parametrize(
    "changes",
    [
        {"method": [{"name": "finetune", "epochs": 1}]},
        {"model": {"name": "hf", "base": "tied llama"}},
        {"model": {"name": "gpt", "width": 8, "layers": 1, "heads": 1}},
    ],
)
def test_no_adapter_is_written_without_a_base_that_the_user_has(folder: Path, tmp_path: Path, changes: Table) -> None:
    table = spec("tied llama", objective={"name": "language_modelling", "vocabulary": 20})
    table["method"] = [{**table["method"][0], "adapter": {"rank": 2}}]
    finished(cli("unlearn", write_spec(folder, table | changes), "--save", tmp_path / "m", "--out", tmp_path / "runs"))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("m")] == ["m"]


def test_the_folder_is_audited_with_the_numbers_of_the_run(folder: Path, tmp_path: Path) -> None:
    out, name = tmp_path / "runs", "tied llama"
    (tmp_path / name).symlink_to(folder / name)
    for file in ("texts.npz", "forget.txt"):
        shutil.copy(folder / file, tmp_path / file)
    done = finished(run(spec(name), out, "--save", tmp_path / "unlearned", "--json"))
    target = tmp_path / "unlearned" / "finetune"
    assert json.loads(done.out)["saved"] == [str(target)]
    again = json.loads(
        finished(cli("audit", tmp_path / "spec.toml", target, "--out", out, "--workers", 1, "--json")).out
    )

    def values(rows: list[Table], model: str) -> list[Any]:
        return [(row["metric"], row["split"], row["value"], row["low"]) for row in rows if row["model"] == model]

    assert values(again["rows"], "finetune") == values(json.loads(done.out)["rows"], "finetune")
    card = (target / "README.md").read_text()
    digest = hf_save_digest(out / "texts" / "manifest.json")
    assert digest in card and "4 training examples to forget, 12 to keep" in card
    assert f"**{again['verdicts'][0]['verdict']}**" in card


def hf_save_digest(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_folders_are_references_of_the_user(folder: Path) -> None:
    for seed in range(3):
        torch.manual_seed(5 + seed)
        llama().save_pretrained(folder / f"filtered{seed}")
    table = spec("tied llama", name="filtered", references=[f"filtered{seed}" for seed in range(3)], method=[])
    del table["seeds"]
    path, out = write_spec(folder, table), folder / "runs" / "filtered"
    finished(cli("run", path, "--out", out, "--workers", 1))
    for seed in range(3):
        stored = load_file(out / "filtered" / "models" / f"reference-s{seed}.safetensors")
        given = load_file(folder / f"filtered{seed}" / "model.safetensors")
        assert stored.keys() == given.keys() and all(torch.equal(stored[name], given[name]) for name in given)
    finished(cli("verify", out / "filtered"))
    other = write_spec(folder, table | {"references": ["gpt2"]})
    result = cli("run", other, "--out", folder / "other", "--workers", 1)
    assert result.code == 2 and "the spec's model has" in result.message()


def test_large_weights_go_into_several_files(tmp_path: Path) -> None:
    model, target = llama(tied=False).eval(), tmp_path / "parts"
    target.mkdir()
    hf_save.save_folder(model, target, None, "--save", shard=8000)
    assert len(list(target.glob("*.safetensors"))) > 1
    read = transformers.LlamaForCausalLM.from_pretrained(target)
    assert all(torch.equal(tensor, read.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_model_that_its_class_does_not_restore_is_not_handed_over(tmp_path: Path) -> None:
    model = llama()
    model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(SpecError, match="would not be the same model"):
        hf_save.save_folder(model, tmp_path, None, "--save")


def test_only_known_regular_files_of_the_users_folder_are_copied(folder: Path, tmp_path: Path) -> None:
    name, secret = "gpt2", tmp_path / "secret"
    source = folder / name
    secret.write_text("secret")
    for known, text in {"tokenizer.json": "{}", "generation_config.json": '{"max_length": 7}', "run.py": "1/0"}.items():
        (source / known).write_text(text)
    (source / "vocab.json").symlink_to(secret)
    (source / "merges.txt").mkdir()
    try:
        target = unlearned(folder, name, tmp_path / "model")
    finally:
        (source / "vocab.json").unlink()
        (source / "merges.txt").rmdir()
        for known in ("tokenizer.json", "generation_config.json", "run.py"):
            (source / known).unlink()
    names = {path.name for path in target.iterdir()}
    expected = {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "README.md"}
    assert names == expected | {"expunge.json"}
    assert json.loads((target / "generation_config.json").read_text()) == {"max_length": 7}


def foreign_file(path: Path) -> None:
    path.write_text("mine")


def foreign_folder(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("mine")


def link(path: Path) -> None:
    path.symlink_to(path.parent)


def pretended(path: Path) -> None:
    foreign_folder(path)
    (path / "expunge.json").write_text('{"format": 1, "files": {"../notes.txt": "0"}}')


@pytest.mark.parametrize("make", [foreign_file, foreign_folder, link, pretended], ids=lambda make: make.__name__)
@pytest.mark.parametrize("verb", ["unlearn", "run"])
def test_what_is_not_ours_is_never_replaced(tmp_path: Path, make: Callable[[Path], None], verb: str) -> None:
    target = tmp_path / "saved" / ("random_relabel" if verb == "run" else "model")
    target.parent.mkdir()
    make(target)
    before = snapshot(target.parent)
    place = target.parent if verb == "run" else target
    result = cli(verb, write_spec(tmp_path / "spec", tiny()), "--save", place, "--out", tmp_path / "runs")
    assert result.code == 2 and "--save" in result.message(), result.err
    assert snapshot(target.parent) == before and not (tmp_path / "runs").exists()


def test_other_models_are_weights_and_a_card_and_ours_is_replaced(tmp_path: Path) -> None:
    table, target = write_spec(tmp_path, tiny(seeds=[0], attack=[], audit=[])), tmp_path / "model"
    for lr in (0.1, 0.2):
        override = ["--set", f"method.random_relabel.learning_rate={lr}"]
        finished(cli("unlearn", table, "--save", target, "--out", tmp_path / "runs", *override))
        assert {path.name for path in target.iterdir()} == {"weights.safetensors", "README.md", "expunge.json"}
        card = (target / "README.md").read_text()
        assert f"learning_rate = {lr}" in card and "Not audited" in card and "12 training examples to forget" in card
    stored = [load_file(p) for p in (tmp_path / "runs" / "cache").glob("*/weights.safetensors")
              if "unlearn" in (p.parent / "stage.json").read_text()]  # fmt: skip
    shipped = load_file(target / "weights.safetensors")
    assert [all(torch.equal(held[n], shipped[n]) for n in shipped) for held in stored].count(True) == 1
    (target / "notes.txt").write_text("mine")
    assert "notes.txt" in cli("verify", target).message()
    result = cli("unlearn", table, "--save", target, "--out", tmp_path / "runs")
    assert result.code == 2 and "notes.txt" in result.message()


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, target = write_spec(tmp_path, tiny(seeds=[0], attack=[], audit=[])), tmp_path / "model"
    finished(cli("unlearn", table, "--save", target, "--out", tmp_path / "runs"))
    before = snapshot(target)

    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("expunge.pipeline.hand_over.unaudited_card", full)
    result = cli("unlearn", table, "--save", target, "--out", tmp_path / "runs")
    assert result.code == 4 and "the disk is full" in result.message()
    assert snapshot(target) == before and not temporaries(tmp_path)


@pytest.mark.parametrize("change", ["changed", "missing", "listed elsewhere"])
def test_verify_finds_a_folder_that_is_not_what_was_handed_over(tmp_path: Path, change: str) -> None:
    target = tmp_path / "model"
    finished(cli("unlearn", write_spec(tmp_path, tiny(seeds=[0])), "--save", target, "--out", tmp_path / "runs"))
    weights, mark = target / "weights.safetensors", target / "expunge.json"
    if change == "changed":
        weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    elif change == "missing":
        weights.unlink()
    else:
        mark.write_text(json.dumps({"format": 1, "files": {"../spec.toml": "0"}}))
    result = cli("verify", target)
    assert result.code == 4 and result.message()


LOAD = """
import numpy as np
import torch
from pathlib import Path
from expunge.core.data import Data
from expunge.core.tokens import read_tokenizer

HERE = Path(__file__).parent

def load():
    tokenizer = read_tokenizer(HERE / "tokenizer", "data")
    texts = [f"number {i} and {i * i}." for i in range(24)]
    ids = [tokenizer.content(text)[:9] for text in texts]
    rows = torch.tensor([row + [tokenizer.eos] * (9 - len(row)) for row in ids])
    names = tokenizer.names(300)
    return Data(rows[:, :-1], rows[:, 1:], torch.arange(16), torch.arange(16, 24), labels=names, tokenizer=tokenizer)
"""


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spec whose data have a tokenizer, and the folder of its unlearned model."""
    path = tmp_path_factory.mktemp("tokenized")
    train_tokenizer([f"number {i} and {i * i}." for i in range(24)], 270, "x").save(path / "tokenizer")
    (path / "texts_of_mine.py").write_text(LOAD)
    (path / "forget.txt").write_text("0\n1\n2\n3\n")
    torch.manual_seed(1)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**LLAMA, "vocab_size": 300})).save_pretrained(path / "m")
    write_spec(path, spec("m", data={"name": "texts_of_mine:load"}))
    finished(cli("unlearn", path / "spec.toml", "--save", path / "model", "--out", path / "runs"))
    return path


def another_vocabulary(folder: Path) -> None:
    train_tokenizer(["other words, other tokens"] * 3, 265, "x").save(folder)


def another_end(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": PAD}))


def another_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")


def two_ids_swapped(folder: Path) -> None:
    path = folder / "tokenizer.json"
    table = json.loads(path.read_text())
    vocabulary = table["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(table))


@pytest.mark.parametrize("change", [another_vocabulary, another_end, another_template, two_ids_swapped])
def test_a_folder_with_another_tokenizer_is_not_audited(
    tokenized: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    given = tmp_path / "given"
    shutil.copytree(tokenized / "model", given)
    change(given)
    result = cli("audit", tokenized / "spec.toml", given, "--out", tmp_path / "runs", "--workers", 1)
    digests = [read_tokenizer(folder, "x").digest for folder in (given, tokenized / "tokenizer")]
    assert result.code == 2 and all(digest in result.message() for digest in digests), result.err


def test_the_tokenizer_of_the_data_goes_into_the_folder(tokenized: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenized / "model")
    assert tokenizer.decode(tokenizer("number 7 and 49.").input_ids) == "number 7 and 49."
    ours = read_tokenizer(tokenized / "tokenizer", "x")
    assert read_tokenizer(tokenized / "model", "x").digest == ours.digest
    finished(cli("audit", tokenized / "spec.toml", tokenized / "model", "--out", tokenized / "runs", "--workers", 1))
