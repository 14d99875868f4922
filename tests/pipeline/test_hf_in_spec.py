"""A Hugging Face folder in a spec, from end to end: images and texts, with and without a base checkpoint."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_model
from sklearn.datasets import load_digits

from helpers import Table, cli, finished, run, snapshot, stages_done, write_spec

transformers = pytest.importorskip("transformers")

SIZE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
FORGET, TRAIN, TEST = 20, 80, 40


def vit(folder: Path, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    shape = {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 10}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**shape, **SIZE))
    model.save_pretrained(folder)
    return model


def llama(folder: Path, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    facts = {"vocab_size": 20, "max_position_embeddings": 16, "tie_word_embeddings": True}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**facts, **SIZE))
    model.save_pretrained(folder)
    return model


def spec(**changes: object) -> Table:
    return {
        "name": "hf",
        "seeds": [0, 1, 2],
        "data": {"name": "arrays", "path": "images.npz"},
        "model": {"name": "hf", "path": "mine"},
        "train": {"epochs": 1, "learning_rate": 1e-3},
        "forget": {"name": "indices", "path": "forget.txt"},
        "method": [{"name": "finetune", "epochs": 1}],
        "attack": [{"name": "relearn", "epochs": 1}],
    } | changes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hf")
    x, y = load_digits(return_X_y=True)
    x, end = (x.astype(np.float32) / 16).reshape(-1, 1, 8, 8), TRAIN + TEST
    np.savez(path / "images.npz", x=x[:TRAIN], y=y[:TRAIN], tx=x[TRAIN:end], ty=y[TRAIN:end])
    rows = np.random.default_rng(0).integers(0, 20, (TRAIN + TEST, 9))
    rows[0, :2] = (0, 19)
    texts = {"x": rows[:TRAIN, :-1], "y": rows[:TRAIN, 1:], "tx": rows[TRAIN:, :-1], "ty": rows[TRAIN:, 1:]}
    np.savez(path / "texts.npz", **texts)
    (path / "forget.txt").write_text("\n".join(map(str, range(FORGET))))
    vit(path / "mine", seed=1)
    vit(path / "base", seed=2)
    llama(path / "gpt", seed=1)
    return path


def made(out: Path, keys: set[str]) -> list[str]:
    return sorted(json.loads((out / "cache" / key / "stage.json").read_text())["stage"] for key in keys)


def test_images_from_end_to_end(folder: Path) -> None:
    out = folder / "runs"
    finished(run(spec(), out))
    assert set(finished(cli("verify", out / "hf")).out.split()) > {"digests,", "verdicts"}
    stored = load_file(out / "hf" / "models" / "original-s0.safetensors")
    given = transformers.ViTForImageClassification.from_pretrained(folder / "mine").state_dict()
    assert stored.keys() == given.keys() and all(torch.equal(stored[name], given[name]) for name in given)
    assert json.loads((out / "hf" / "manifest.json").read_text())["about_one_model"]
    models = {path.stem for path in (out / "hf" / "models").iterdir() if "relearn" not in path.name}
    assert models == {"original-s0", "finetune-s0", "reference-s0", "reference-s1", "reference-s2"}
    before = snapshot(out / "cache")
    finished(run(spec(), out))
    assert snapshot(out / "cache") == before


def test_other_weights_are_another_original_with_the_same_references(folder: Path) -> None:
    out = folder / "runs"
    finished(run(spec(), out))
    before = stages_done(out)
    vit(folder / "other", seed=3)
    finished(run(spec(name="other", model={"name": "hf", "path": "other"}), out))
    new = made(out, stages_done(out) - before)
    assert "seed 0: original" in new
    assert not [name for name in new if name.endswith("reference")]


def test_a_base_is_what_references_begin_with(folder: Path) -> None:
    out = folder / "runs"
    finished(run(spec(), out))
    before = stages_done(out)
    # A rate at which nothing moves shows where training began.
    still = {"epochs": 1, "learning_rate": 1e-30}
    model = {"name": "hf", "path": "mine", "base": "base"}
    finished(run(spec(name="based", model=model, train=still, attack=[]), out))
    assert len([name for name in made(out, stages_done(out) - before) if name.endswith("reference")]) == 3
    base = transformers.ViTForImageClassification.from_pretrained(folder / "base").state_dict()
    for seed in range(3):
        stored = load_file(out / "based" / "models" / f"reference-s{seed}.safetensors")
        # A step of 1e-30 is lost in any weight but those that are 0.
        assert all(torch.allclose(stored[name], base[name], rtol=0, atol=1e-20) for name in base)


def test_with_a_base_alone_the_original_is_trained_from_it_too(folder: Path, tmp_path: Path) -> None:
    out, base = folder / "runs", transformers.LlamaForCausalLM.from_pretrained(folder / "gpt").state_dict()
    table = spec(
        name="trained",
        one_original=True,
        data={"name": "arrays", "path": "texts.npz"},
        model={"name": "hf", "base": "gpt"},
        train={"epochs": 1, "learning_rate": 0.1, "adapter": {"rank": 2}},
        attack=[],
    )
    finished(run(table, out, "--save", tmp_path / "saved"))
    models = out / "trained" / "models"
    assert {path.stem for path in models.iterdir()} == {
        "original-s0", "finetune-s0", "reference-s0", "reference-s1", "reference-s2"
    }  # fmt: skip
    for path in models.glob("*-s0.safetensors"):
        stored = load_file(path)
        moved = {name for name in stored if not torch.equal(stored[name], base[name])}
        # An adapter leaves embeddings and norms as they are in the base.
        assert (moved and all("_proj" in name for name in moved)) or path.stem.startswith("finetune")
    shipped = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "saved" / "finetune").state_dict()
    assert torch.equal(shipped["model.norm.weight"], load_file(models / "finetune-s0.safetensors")["model.norm.weight"])
    assert json.loads((tmp_path / "saved" / "finetune" / "config.json").read_text())["use_cache"] is True


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({}, "'path' is missing; allowed: .*`base` alone"),
        ({"adapter": "mine"}, "'path' is missing"),
        ({"base": "gpt", "adapter": "mine"}, "an adapter needs the model that it was trained on"),
        ({"base": "nowhere/at-all"}, "model.base: there is neither a folder"),
    ],
)
def test_a_model_without_a_path_needs_a_base_and_no_adapter(folder: Path, model: Table, words: str) -> None:
    refused = cli("run", write_spec(folder, spec(model={"name": "hf", **model})), "--out", folder / "runs")
    assert refused.code in (2, 3) and re.search(words, refused.message()), refused.message()


def test_texts_from_end_to_end(folder: Path) -> None:
    out = folder / "runs"
    table = spec(name="texts", data={"name": "arrays", "path": "texts.npz"}, model={"name": "hf", "path": "gpt"})
    finished(run(table, out))
    rows = [json.loads(line) for line in (out / "texts" / "results.jsonl").read_text().splitlines()]
    assert "recitation" in {row["metric"] for row in rows}
    stored = load_file(out / "texts" / "models" / "original-s0.safetensors")
    given = transformers.LlamaForCausalLM.from_pretrained(folder / "gpt").state_dict()
    # The tied head is stored once.
    assert given.keys() - stored.keys() == {"lm_head.weight"}
    assert all(torch.equal(stored[name], given[name]) for name in stored)


def test_unlearned_weights_can_be_audited(folder: Path) -> None:
    table, out = write_spec(folder, spec(seeds=[0])), folder / "runs"
    weights = folder / "done.safetensors"
    finished(cli("unlearn", table, "--out", out, "--save", weights))
    given = transformers.ViTForImageClassification.from_pretrained(folder / "mine").state_dict()
    assert load_file(weights).keys() == given.keys()
    finished(cli("audit", table, weights, "--out", out, "--workers", 1))
    assert (out / "hf-done" / "verdicts.json").is_file()


def rows_of(out: Path, name: str) -> list[Table]:
    """The results without the model's label and what depends on it."""
    lines = (out / name / "results.jsonl").read_text().splitlines()
    return [
        {**row, "model": row["model"].replace("whole", "-").replace("parts", "-")} for row in map(json.loads, lines)
    ]


def test_a_folder_of_transformers_can_be_audited_in_one_file_or_in_several(folder: Path) -> None:
    table, out = write_spec(folder, spec(seeds=[0])), folder / "runs"
    unlearned = vit(folder / "whole", 5)
    unlearned.save_pretrained(folder / "parts", max_shard_size="4KB")
    assert len(list((folder / "parts").glob("*.safetensors"))) > 1
    for name in ("whole", "parts"):
        finished(cli("audit", table, folder / name, "--out", out, "--workers", 1))
        stored = load_file(out / f"hf-{name}" / "models" / f"{name}-s0.safetensors")
        assert all(torch.equal(stored[key], tensor) for key, tensor in unlearned.state_dict().items())
    assert rows_of(out, "hf-whole") == rows_of(out, "hf-parts")
    before = stages_done(out)
    vit(folder / "whole", 6)  # other weights under the same name are another model
    finished(cli("audit", table, folder / "whole", "--out", folder / "again", "--workers", 1))
    assert rows_of(folder / "again", "hf-whole") != rows_of(out, "hf-parts")
    assert stages_done(out) == before


def deeper(path: Path) -> None:
    shape = {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 10}
    config = transformers.ViTConfig(**shape, **{**SIZE, "num_hidden_layers": 2})
    transformers.ViTForImageClassification(config).save_pretrained(path)


def headless(path: Path) -> None:
    vit(path, 0).vit.save_pretrained(path)


def pickled(path: Path) -> None:
    vit(path, 0)
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def adapter(path: Path) -> None:
    path.mkdir()
    (path / "adapter_config.json").write_text("{}")


UNFIT = {
    "another depth": (deeper, "num_hidden_layers = 2, the spec's model has 1"),
    "another family": (lambda path: llama(path, 0), "the spec's model has"),
    "no head": (headless, "lacks classifier"),
    "a pickle": (pickled, "no weights as safetensors"),
    "an adapter without weights": (adapter, r"holds no adapter_model\.safetensors; .*PEFT"),
    "an empty folder": (
        lambda path: path.mkdir(),
        "holds no config.json; allowed: a folder that save_pretrained wrote",
    ),
    "nothing": (lambda path: None, "cannot read"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_folder_of_another_model_is_not_audited(folder: Path, tmp_path: Path, name: str) -> None:
    make, words = UNFIT[name]
    make(tmp_path / "other")
    result = cli("audit", write_spec(folder, spec(seeds=[0])), tmp_path / "other", "--out", folder / "runs")
    assert result.code == 2 and re.search(words, result.message()), result.err


def test_a_folder_needs_a_spec_with_a_model_of_transformers(folder: Path) -> None:
    (folder / "plain.py").write_text(
        "from torch import nn\ndef build(data):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    save_model(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), str(folder / "plain.safetensors"))
    table = spec(seeds=[0], model={"name": "plain:build", "weights": str(folder / "plain.safetensors")})
    result = cli("audit", write_spec(folder, table), folder / "mine", "--out", folder / "runs")
    assert result.code == 2 and "Sequential is not a model of transformers" in result.message()


@pytest.mark.parametrize(
    ("model", "code", "words"),
    [
        ({"path": "mine", "weights": "x.safetensors"}, 2, "'hf' has its own weights"),
        ({"path": "nobody/nothing"}, 3, "hf download nobody/nothing"),
        ({"path": "mine", "base": "nobody/nothing"}, 3, "model.base: there is neither a folder"),
        ({"path": "gpt"}, 2, "a model made for the data"),
        ({}, 2, "'path' is missing"),
    ],
)
def test_refused_before_anything_is_written(folder: Path, model: Table, code: int, words: str) -> None:
    out = folder / "nothing" / "runs"
    for name in ("images.npz", "forget.txt"):
        (folder / "nothing").mkdir(exist_ok=True)
        (folder / "nothing" / name).write_bytes((folder / name).read_bytes())
    model = {key: f"../{value}" if value in ("mine", "gpt") else value for key, value in model.items()}
    result = run(spec(model={"name": "hf", **model}), out)
    assert (result.code, words in result.message()) == (code, True), result.err
    assert not out.exists()


@pytest.mark.parametrize("arguments", [["--help"], ["list", "models"], ["show", "hf"], ["doctor"]])
def test_transformers_is_imported_only_where_a_model_needs_it(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom expunge.cli import main\nsys.argv = ['expunge', *sys.argv[1:]]\n"
        "try:\n    main()\nexcept SystemExit as left:\n    assert not left.code, left.code\n"
        "assert 'transformers' not in sys.modules and 'huggingface_hub' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
