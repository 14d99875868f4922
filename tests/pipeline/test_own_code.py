"""Code of the user's in a spec is checked as in a notebook, before anything is trained where that is possible."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expunge.reporting.verify import verify
from helpers import Table, finished, run, tiny

MODELS = """
import copy, torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

def plain(data): return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

KEPT = plain(None)
def kept(data): return KEPT
BODY = nn.Linear(64, 16)
def body(data): return nn.Sequential(nn.Flatten(), BODY, nn.ReLU(), nn.Linear(16, 10))
def parallel(data): return nn.DataParallel(KEPT)

class Two(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.net, self.how = plain(None), how
    def forward(self, x):
        return self.how(self.net(x))

def first(y): return y, y
def softmax(y): return y.softmax(1)
def fails(y): return y @ y
def pair(data): return Two(first)
def probabilities(data): return Two(softmax)
def failing(data): return Two(fails)
def expanded(data):
    made = plain(None)
    made.register_buffer("scale", torch.ones(1).expand(4))
    return made

def fit(model, dataset, seed=None, how=""):
    if seed is not None: torch.manual_seed(seed)
    trained = copy.deepcopy(model) if how == "copy" else model
    if how == "same":
        for layer in (model[1], model[3]): layer.reset_parameters()
    optimizer = torch.optim.Adam(trained.parameters(), lr=1e-2)
    for _ in range(3):
        for x, y in DataLoader(dataset, batch_size=32, shuffle=True) if how != "blind" else []:
            optimizer.zero_grad(); F.cross_entropy(trained(x), y).backward(); optimizer.step()
    if how == "blind":
        with torch.no_grad(): trained[1].weight.add_(1)
    return trained
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "their_code.py").write_text(MODELS, encoding="utf-8")
    return tmp_path


def refused(table: Table, folder: Path, *words: str) -> None:
    result = run(table, folder / "runs")
    assert result.code in (2, 4), result.err
    for word in words:
        assert word in result.message(), result.err


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("kept", ("shares memory with that of an earlier call", "1.weight")),
        ("body", ("shares memory with that of an earlier call", "1.weight")),
        ("parallel", ("shares memory with that of an earlier call", "module.1.weight")),
        ("probabilities", ("its outputs are probabilities", "log_softmax")),
        ("failing", ("a forward pass on inputs [8, 1, 8, 8] torch.float32 failed", "RuntimeError")),
        ("expanded", ("elements of scale share memory", "clone()")),
    ],
)
def test_a_model_of_ones_own_is_tried_before_training(folder: Path, model: str, words: tuple[str, ...]) -> None:
    refused(tiny(model={"name": f"their_code:{model}"}), folder, *words)
    assert not list((folder / "runs" / "cache").glob("*")) if (folder / "runs" / "cache").exists() else True


def test_a_model_with_two_outputs_is_told_how_to_name_one(folder: Path) -> None:
    refused(tiny(model={"name": "their_code:pair"}), folder, "the model returns a tuple of 2 values", "output = ")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"how": "copy"}, ("it returns another module", "load_state_dict")),
        ({"how": "blind"}, ("it read 0 of the 120 items",)),
        ({"how": "same", "seed": 1}, ("they are one model and would count as two", "do not set seeds")),
    ],
    ids=["copy", "blind", "same seed"],
)
def test_a_training_of_ones_own_is_checked(folder: Path, settings: dict[str, Any], words: tuple[str, ...]) -> None:
    training = {"name": "their_code:fit", **settings}
    table = arrays(folder, PIXELS, np.arange(180) % 10) | {"model": {"name": "their_code:plain"}, "train": training}
    refused(table | {"audit": [], "attack": []}, folder, *words)


SILENT = [
    {"name": "finetune", "epochs": 1, "learning_rate": 1e-30},
    {"name": "ssd", "alpha": 1e9},
    {"name": "random_relabel", "epochs": 1, "budget": 1},
    {"name": "weight_distortion", "sigma": 1e-30, "epochs": 1, "learning_rate": 1e-30},
]


@pytest.mark.parametrize("method", SILENT, ids=lambda method: method["name"])
def test_a_method_that_changed_nothing_is_a_finding(tmp_path: Path, method: dict[str, Any]) -> None:
    methods = [method, {"name": "finetune", "label": "moved", "epochs": 1, "after": method["name"]}]
    result = finished(run(tiny(seeds=[0], method=methods, attack=[], audit=[]), tmp_path))
    assert "this method changed nothing" in result.err and "moved: this method" not in result.err
    folder = tmp_path / "tiny"
    silent, moved = json.loads((folder / "verdicts.json").read_text())
    assert silent["reasons"][0].startswith("This method changed nothing")
    assert not any("changed nothing" in reason for reason in moved["reasons"])
    assert "This method changed nothing" in (folder / "report.html").read_text(encoding="utf-8")
    changed = {s["part"]: s["changed"] for s in json.loads((folder / "manifest.json").read_text())["stages"]}
    assert (changed[method["name"]], changed["moved"], changed["original"]) == (False, True, None)
    assert verify(folder)["verdicts"] == 2


def arrays(folder: Path, x: np.ndarray, y: np.ndarray) -> Table:
    folder.mkdir(exist_ok=True)
    np.savez(folder / "own.npz", x=x[:120], y=y[:120], tx=x[120:], ty=y[120:])
    (folder / "forget.json").write_text(json.dumps(list(range(12))))
    return tiny(data={"name": "arrays", "path": "own.npz"}, forget={"name": "indices", "path": "forget.json"})


RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.random((180, 1, 8, 8)).astype(np.float32)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (10 * (np.arange(180) % 10), ("the largest label is 90, which makes 91 classes", "81 of them have no example")),
        (255 * (np.arange(180) % 2), ("the largest label is 255",)),
        (np.where(np.arange(180) == 7, 10_000_000, 0), ("the largest label is 10000000",)),
        (np.arange(180) + 1_000_000, ("below 1000000",)),
        (2000 + np.arange(180) % 24, ("the largest label is 2023", "unique(y, return_inverse=True)")),
    ],
    ids=["tens", "bytes", "one huge", "ids", "years"],
)
def test_labels_with_gaps_are_refused(tmp_path: Path, labels: np.ndarray, words: tuple[str, ...]) -> None:
    refused(arrays(tmp_path, PIXELS, labels), tmp_path, "data.targets", *words)


def test_some_classes_without_an_example_are_taken(tmp_path: Path) -> None:
    table = arrays(tmp_path, PIXELS, np.array([0, 1, 9])[np.arange(180) % 3])
    assert finished(run(table, tmp_path / "runs", "--dry-run"))


def test_copies_in_a_file_are_counted_and_form_groups(tmp_path: Path) -> None:
    x, y = PIXELS.copy(), np.arange(180) % 10
    x[:12] = x[:3].repeat(4, 0)  # the forget set: three pictures, four times each
    x[20] = x[0]
    result = finished(run(arrays(tmp_path, x, y), tmp_path / "runs", "--dry-run"))
    assert "forget: 12 examples are copies of 3" in result.err
    assert "forget: 4 of 12 examples have a copy in retain" in result.err
