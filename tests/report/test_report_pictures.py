"""Classes, losses and maps of answers on the page: what they show is what the record holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _written
import numpy as np
import pytest
from _written import Writer
from test_report_page import Reader, give_examples, page_of

from expunge.evidence.scores import Scores, dumps, loads
from expunge.reporting.classes import classes
from expunge.reporting.page import in_order
from expunge.reporting.pictures import histograms, maps
from expunge.reporting.record import Run

Make = Callable[..., Path]
LABELS = np.arange(_written.TEST) % 2


def with_classes(metric: str, split: str, right: np.ndarray, ids: np.ndarray) -> Scores:
    return Scores(metric, split, right, ids, "utility", "share", "higher", reduce="worst", label=LABELS[ids])


class Classed(Writer):
    """A record whose models have two classes, losses, and answers to the forget examples."""

    def model(self, model: str, seed: int) -> None:
        known = _written.accuracy

        def accuracy(split: str, rate: float) -> Scores:
            scores = known(split, rate)
            if split != "forget":
                return scores
            target = np.zeros(_written.FORGET, dtype=np.int64)
            answer = 1 - scores.values.astype(np.int64)
            return Scores(
                "accuracy", split, scores.values, scores.ids, "knowledge", "share", "reference",
                required=True, target=target, answer=answer,
            )  # fmt: skip

        _written.accuracy = accuracy
        try:
            super().model(model, seed)
        finally:
            _written.accuracy = known
        ids = np.arange(_written.TEST)
        # The model that hides has lost the second class, apart from a fifth of it.
        right = np.where((LABELS == 1) & (ids % 10 > 1) & (model == "hidden"), 0.0, 1.0)
        losses = [
            Scores("loss", split, np.full(50, value), np.arange(50), "description", "nats", "lower", sign=-1)
            for split, value in (("forget", 0.01 if model == "original" else 1.0), ("test", 0.1))
        ]
        found = [with_classes("worst_label_accuracy", "test", right, ids), *losses]
        self.stage("audit", model, seed, None, "more", scores=dumps(found))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("classes") / "sample"
    return Classed(root, _written.KNOWN, [0, 1, 2], ["relearn"]).finish()


def test_each_class_stands_beside_original_and_retrained(folder: Path) -> None:
    run = Run.open(folder)
    table = classes(run, in_order(run))
    assert table is not None
    assert table["models"] == ["original", "retrained", "clean", "hidden"]
    zero, one = table["lines"]
    assert [cell["value"] for cell in zero["cells"]] == ["100.0"] * 4
    assert [cell["value"] for cell in one["cells"]] == ["100.0", "100.0", "100.0", "20.0"]
    assert one["cells"][3] == {"value": "20.0", "gap": "-80.0", "lost": True}
    assert not one["cells"][2]["lost"]


def test_the_table_of_answers_says_who_is_taken_for_what(folder: Path) -> None:
    run = Run.open(folder)
    tables = {t["model"]: t for t in classes(run, in_order(run))["tables"]}  # type: ignore[index]
    assert list(tables) == ["original", "retrained", "clean", "hidden"]
    [row] = tables["retrained"]["rows"]
    assert row["name"] == "0" and [cell["text"] for cell in row["cells"]] == ["10", "90"]
    [row] = tables["original"]["rows"]
    assert [cell["text"] for cell in row["cells"]] == ["100", ""] and row["cells"][0]["right"]


def test_losses_are_drawn_for_each_model_and_their_medians_said(folder: Path) -> None:
    run = Run.open(folder)
    panels = histograms(run, in_order(run), compact=False)
    assert [panel["model"] for panel in panels] == ["original", "clean", "hidden"]
    assert panels[0]["medians"] == "forget 0.01, unseen 0.1, retrained 1"
    text = Reader(page_of(folder)).text
    assert "Who is taken for what" in text and "Losses" in text


def test_a_record_without_them_is_shown_without_them(run_folder: Path) -> None:
    run = Run.open(run_folder)
    assert classes(run, run.methods) is None and histograms(run, run.methods, compact=False) == []
    assert maps(run, run.methods) == []


def test_targets_and_answers_survive_the_file() -> None:
    entry = Scores(
        "accuracy", "forget", np.ones(2), np.arange(2), "knowledge", "share", "reference",
        target=np.array([3, 4]), answer=np.array([3, 5]),
    )  # fmt: skip
    [read] = loads(dumps([entry]))
    assert read.target is not None and read.answer is not None
    assert read.target.tolist() == [3, 4] and read.answer.tolist() == [3, 5]


def gallery(**more: Any) -> dict[str, Any]:
    models = [("original", None), ("reference", None), ("hidden", None), ("hidden", "relearn")]

    def example(number: int, *knows: bool) -> dict[str, Any]:
        answers = [{"said": "a" if k else "b", "knows": k} for k in knows]
        return {"id": number, "picture": "data:image/png;base64,AA==", "trained": "a", "true": None, "answers": answers}

    return {
        "format": 3, "kind": "images", "seed": 0, "of": 20, "different": 20,
        "models": [{"model": model, "attack": attack} for model, attack in models],
        "examples": [example(1, True, False, False, False), example(2, True, False, False, True)],
        **more,
    }  # fmt: skip


def test_examples_that_came_back_are_first(run_folder: Path) -> None:
    give_examples(run_folder, gallery())
    page = page_of(run_folder)
    assert page.index("Forget example 2") < page.index("Forget example 1")
    assert page.count("came back</small>") == 1
    headings = [part.split('"')[0] for part in page.split('<h2 id="')[1:]]
    assert headings.index("examples") == headings.index("verdicts") + 1


def test_maps_show_each_model_before_and_after_attacks(run_folder: Path) -> None:
    points = [[float(i), float(-i)] for i in range(6)]
    cloud = {"sets": {"forget": 2, "retained": 2, "unseen": 2}, "places": [points] * 4}
    give_examples(run_folder, gallery(map=cloud, labels=["shirt", "coat"]))
    run = Run.open(run_folder)
    assert [panel["model"] for panel in maps(run, run.methods)] == [
        "original",
        "retrained",
        "hidden",
        "hidden after relearn",
    ]
    assert "Map of answers" in Reader(page_of(run_folder)).text
    assert json.dumps(cloud)
