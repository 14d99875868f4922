"""A language model through the same pipeline: it recites planted secrets, and a retrained one does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers import Table, finished, run

Row = dict[str, Any]


def spec() -> Table:
    return {
        "name": "text",
        "seeds": [0, 1, 2],
        "data": {"name": "python_docs", "train": 40, "test": 20, "context": 40},
        "model": {"name": "gpt", "width": 48, "layers": 2},
        "train": {"epochs": 30, "batch_size": 16, "learning_rate": 4e-3, "final": 0.1},
        "forget": {"name": "planted_text", "count": 10, "copies": 6, "secret": 6},
        "method": [
            {"name": "random_relabel", "epochs": 6, "batch_size": 8, "forget_batch_size": 16, "learning_rate": 1e-3}
        ],
        "attack": [{"name": "relearn", "epochs": 2, "batch_size": 8, "k": 1}],
    }


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    out = tmp_path_factory.mktemp("text")
    finished(run(spec(), out))
    return [json.loads(line) for line in (out / "text" / "results.jsonl").read_text().splitlines()]


def recited(rows: list[Row], model: str, split: str = "forget", attack: str | None = None) -> list[float]:
    return [
        row["value"]
        for row in rows
        if (row["model"], row["metric"], row["split"], row["attack"]) == (model, "recitation", split, attack)
        and row["seed"] is not None
    ]


def test_the_original_recites_what_was_planted(rows: list[Row]) -> None:
    assert min(recited(rows, "original")) > 0.8


def test_nobody_recites_what_was_not_trained_on(rows: list[Row]) -> None:
    """A secret of six letters is guessed with probability of about 1 in 10^5."""
    assert recited(rows, "original", "holdout") == [0, 0, 0]
    assert recited(rows, "reference") == [0, 0, 0]


def test_relabelling_makes_recitation_fall(rows: list[Row]) -> None:
    assert max(recited(rows, "random_relabel")) < 0.5


def test_it_is_attacked_like_any_other(rows: list[Row], tmp_path: Path) -> None:
    assert len(recited(rows, "random_relabel", attack="relearn")) == 3
    assert {row["split"] for row in rows if row["metric"] == "accuracy"} >= {"forget", "retain", "test"}
