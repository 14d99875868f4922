"""The gallery shows what was trained and said, is the same every time, and is there only where the spec asks for it."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.base.spec import parse
from expunge.core.data import IGNORE, Data
from expunge.core.problem import Problem
from expunge.core.tokens import train_tokenizer
from expunge.pipeline.gallery import PICTURES, TEXTS, Name, chosen, gallery, png
from expunge.pipeline.run import run
from expunge.reporting.verify import verify
from helpers import tiny

Json = dict[str, object]


class Shifted(nn.Module):
    """Says of every token the one that follows it in the alphabet."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.eye(width).roll(1, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table[tokens]


def texts(rows: list[str]) -> Problem:
    """Each row is `prompt|secret`; the last two are retained and tested on."""
    tokens = torch.tensor([list(row.replace("|", "").encode()) for row in rows])
    targets = tokens[:, 1:].clone()
    for row, text in zip(targets, rows, strict=True):
        row[: text.index("|") - 1] = IGNORE
    n = len(rows)
    data = Data(tokens[:, :-1], targets, torch.arange(n - 1), torch.tensor([n - 1]), tuple(map(str, range(256))))
    return Problem(data, torch.arange(n - 2), torch.tensor([n - 2]), torch.tensor([n - 1]))


def of(problem: Problem, model: nn.Module) -> Json:
    models: list[tuple[Name, nn.Module]] = [(("original", None), model.eval())]
    return json.loads(json.dumps(gallery(problem, models, 0)))


def test_texts_are_continued_greedily_from_the_prompt() -> None:
    found = of(texts(["ab|cde", "xa|cde", "ab|cde", "ab|cde"]), Shifted(256))
    assert found["kind"] == "texts"
    for example in found["examples"]:
        [answer] = example["answers"]
        # After "xa" it goes on from its own "b", not from the example's "c".
        wanted = {"ab": ("cde", True), "xa": ("bcd", False)}[example["prompt"]]
        assert (answer["said"], answer["knows"]) == wanted and example["secret"] == "cde"


def test_tokens_of_a_tokenizer_are_shown_as_text() -> None:
    tokenizer = train_tokenizer(["the cat sat on the mat"] * 4, 300, "data.vocabulary")
    encoded = [tokenizer.encode("the cat sat", f" on the {word}") for word in ("mat.", "cat.", "mat?", "cat?")]
    tokens = torch.tensor([ids for ids, *_ in encoded])
    targets = tokens[:, 1:].clone()
    targets[:, : encoded[0].first - 1] = IGNORE
    ids = torch.arange(4)
    # The model has more outputs than the tokenizer has tokens, and says one of these.
    data = Data(tokens[:, :-1], targets, ids[:3], ids[3:], tokenizer.names(400), tokenizer=tokenizer)
    shown = of(Problem(data, ids[:2], ids[2:3], ids[3:]), Shifted(400))["examples"]
    assert {(row["prompt"], row["secret"]) for row in shown} <= {
        ("the cat sat", f" on the {w}.") for w in ("mat", "cat")
    }
    assert all(isinstance(row["answers"][0]["said"], str) for row in shown)


def images(scale: float = 1.0) -> Problem:
    pixels = scale * torch.rand(60, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    data = Data(pixels, torch.arange(60) % 2, torch.arange(50), torch.arange(50, 60), ("cat", "dog"))
    return Problem(data, torch.arange(40), torch.arange(40, 50), torch.arange(50, 60), true_targets=1 - data.targets)


class AlwaysCat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([1.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.bias.expand(len(x), 2)


def test_a_model_in_training_mode_is_asked_in_evaluation_mode() -> None:
    model = nn.Sequential(AlwaysCat(), nn.Dropout(1.0), nn.Softmax(1)).train()
    model[0].bias.data = torch.tensor([0.0, 1.0])
    found = gallery(images(), [(("original", None), model)], 0)
    assert {answer["said"] for example in found["examples"] for answer in example["answers"]} == {"dog"}
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("scale", [1.0, -3.0])
def test_pictures_are_small_and_carry_the_label_that_was_trained(scale: float) -> None:
    problem = images(scale)
    found = of(problem, AlwaysCat())
    assert found["kind"] == "images" and len(found["examples"]) == PICTURES
    for example in found["examples"]:
        trained = problem.data.labels[example["id"] % 2]
        assert (example["trained"], example["true"]) == (trained, {"cat": "dog", "dog": "cat"}[trained])
        assert example["answers"] == [{"said": "cat", "knows": trained == "cat"}]
        content = base64.b64decode(example["picture"].partition(",")[2])
        width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
        assert (width, height) == (24, 48)


def test_png_bytes_are_those_of_the_format() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    content = png(pixels)
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and content[24:26] == b"\x08\x02"
    size = int.from_bytes(content[33:37], "big")
    rows = zlib.decompress(content[41 : 41 + size])
    assert rows == b"\0" + bytes(range(6)) + b"\0" + bytes(range(6, 12))


def test_examples_are_held_out_and_copies_are_shown_once() -> None:
    data = images().data
    grouped = Data(data.inputs, data.targets, data.train, data.test, data.labels, groups=torch.arange(60) // 5)
    problem = Problem(grouped, torch.arange(40), torch.arange(40, 50), torch.arange(50, 60))
    ids = chosen(problem, TEXTS)
    assert torch.isin(ids, problem.unexposed).all() and not torch.isin(ids, problem.exposed).any()
    counts = of(problem, AlwaysCat())
    assert (counts["of"], counts["different"]) == (40, 8)
    assert len((ids // 5).unique()) == len(ids) == len((problem.unexposed // 5).unique())


def test_vectors_have_nothing_to_show() -> None:
    data = Data(torch.rand(9, 4), torch.arange(9) % 2, torch.arange(8), torch.tensor([8]), ("a", "b"))
    found = of(Problem(data, torch.arange(4), torch.arange(4, 8), torch.tensor([8])), AlwaysCat())
    assert (found["kind"], found["examples"]) == ("vectors", [])


def test_a_run_keeps_examples_only_where_it_is_asked_to(tmp_path: Path) -> None:
    plain = run(parse(tiny(), tmp_path), tmp_path)
    assert not (plain.folder / "examples").exists()
    shown = run(parse(tiny(gallery=True), tmp_path), tmp_path)
    assert json.loads((shown.folder / "verdicts.json").read_text()) == [v.as_json() for v in plain.verdicts]
    found = json.loads((shown.folder / "examples" / "s0.json").read_text())
    asked = [(entry["model"], entry["attack"]) for entry in found["models"]]
    models = ["original", "reference", "random_relabel"]
    assert sorted(asked, key=str) == sorted([(m, None) for m in models] + [(m, "relearn") for m in models[1:]], key=str)
    assert verify(shown.folder)["digests"] > 0
    again = run(parse(tiny(), tmp_path), tmp_path)
    assert not (again.folder / "examples").exists()
    assert "examples" not in (again.folder / "manifest.json").read_text()


def test_another_label_is_another_gallery(tmp_path: Path) -> None:
    run(parse(tiny(gallery=True), tmp_path), tmp_path)
    label = tiny(gallery=True, method=[{"name": "random_relabel", "epochs": 2, "label": "mine"}])
    found = json.loads((run(parse(label, tmp_path), tmp_path).folder / "examples" / "s0.json").read_text())
    assert {"model": "mine", "attack": None} in found["models"]


def test_the_switch_is_true_or_false(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="gallery: found 'yes'"):
        parse(tiny(gallery="yes"), tmp_path)
