"""Comparing takes like with like, and says how far two runs differ; the leaderboard says what each method left."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _written import accept_digest, judge_again

from expunge.base.errors import SpecError
from expunge.evidence.scores import Scores, dumps, load
from expunge.reporting.compare import Pair, comparison_table, differences
from expunge.reporting.compare_page import write_comparison
from expunge.reporting.leaderboard import leaderboard, markdown
from expunge.reporting.verify import verify

Json = dict[str, Any]
OTHER = {"original": (1.0, None), "reference": (0.1, 0.1), "hidden": (0.3, 0.5), "third": (0.1, 0.1)}


@pytest.fixture
def pair(make_run: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    """The sample run, and another with one method changed, one left out and one more."""
    first = make_run()
    shutil.copytree(first, tmp_path / "kept")
    shutil.rmtree(first)
    second = make_run(OTHER, seeds=[1, 2, 3])
    return tmp_path / "kept", second


def change_spec(folder: Path, **changes: Any) -> None:
    path = folder / "spec.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    accept_digest(folder, "spec.json")


def test_differences_are_second_minus_first_over_the_seeds_of_both(pair: tuple[Path, Path]) -> None:
    found = Pair.open(*pair)
    assert found.seeds == [1, 2]
    rows = {(r["model"], r["attack"], r["metric"], r["split"]): r for r in found.rows()}
    row = rows["hidden", None, "accuracy", "forget"]
    assert (row["first"]["value"], row["second"]["value"]) == pytest.approx((0.2, 0.3))
    assert row["difference"]["value"] == pytest.approx(0.1) and row["difference"]["seeds"] == 2
    assert rows["hidden", "relearn", "accuracy", "forget"]["difference"]["value"] == pytest.approx(-0.4)
    assert rows["clean", None, "accuracy", "forget"]["second"] is None
    assert rows["third", None, "accuracy", "forget"]["difference"] is None
    # The mean of the first run is over seeds 0, 1, 2, the difference over 1 and 2 alone: the same seeds, no difference.
    assert rows["hidden", None, "l2_distance", "weights"]["first"]["value"] == pytest.approx(2.1)
    assert rows["hidden", None, "l2_distance", "weights"]["difference"]["value"] == pytest.approx(0, abs=1e-12)


def test_one_seed_has_no_interval(pair: tuple[Path, Path], make_run: Callable[..., Path]) -> None:
    shutil.rmtree(pair[1])
    rows = Pair.open(pair[0], make_run(OTHER, seeds=[2, 3])).rows()
    assert math.isnan(rows[0]["difference"]["low"])


def test_the_terminal_summary(pair: tuple[Path, Path]) -> None:
    change_spec(pair[1], threads=2)
    text = comparison_table(Pair.open(*pair))
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line}
    assert lines["hidden"][1:4] == ["dormant", "dormant", "+10.0"] and lines["hidden"][5] == "-40.0"
    assert lines["clean"] == ["clean", "erased", "-"] and lines["third"] == ["third", "-", "erased"]
    assert "over seeds 1, 2" in text and "threads: 1 -> 2" in text


def test_the_page_stands_alone_and_shows_both(pair: tuple[Path, Path], tmp_path: Path) -> None:
    page = write_comparison(Pair.open(*pair), tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
    assert "http:" not in page and "https:" not in page and len(page) < 1_000_000
    assert page.count('role="img"') == 1  # both tried `hidden` alone
    assert "var(--second)" in page and "var(--method)" in page
    assert '"step {}: sample ({}) {} %, sample ({}) {} %, retrained {} %"' in page
    assert '"0 1 20.0 2 30.0 10.0"' in page
    assert page.count("not tried") == 2
    again = write_comparison(Pair.open(*pair), tmp_path / "again.html").read_text(encoding="utf-8")
    assert again == page


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data": {"name": "digits", "train": 500, "test": None}}, "data.train differ: 400 and 500"),
        ({"data": {"name": "arrays"}}, "data.name differ: 'digits' and 'arrays'"),
        ({"forget": {"name": "whole_class"}}, "forget.name differ: 'indices' and 'whole_class'"),
    ],
)
def test_other_data_or_another_forget_set_is_refused(pair: tuple[Path, Path], changes: Json, named: str) -> None:
    change_spec(pair[1], **changes)
    with pytest.raises(SpecError, match=re.escape(named)):
        Pair.open(*pair)


def test_other_examples_under_the_same_settings_are_refused(pair: tuple[Path, Path]) -> None:
    for path in (pair[1] / "scores").glob("*-s1-*accuracy.safetensors"):
        held = load(pair[1], f"scores/{path.name}")
        path.write_bytes(dumps([Scores(**{**vars(entry), "ids": entry.ids + 1}) for entry in held]))
    judge_again(pair[1])
    with pytest.raises(SpecError, match="examples that accuracy on forget was measured on with seed 1"):
        Pair.open(*pair)


def test_another_meaning_or_format_of_scores_is_refused(pair: tuple[Path, Path]) -> None:
    paths = sorted((pair[1] / "scores").glob("*-distance.safetensors"))
    for path in paths:
        held = load(pair[1], f"scores/{path.name}")
        path.write_bytes(dumps([Scores(**{**vars(entry), "unit": "nats"}) for entry in held]))
    judge_again(pair[1])
    with pytest.raises(SpecError, match="the unit of l2_distance on weights differ: 'weight' and 'nats'"):
        Pair.open(*pair)
    for path in (pair[1] / "scores").iterdir():
        path.write_bytes(path.read_bytes().replace(b'{\\"format\\": 3', b'{\\"format\\": 2'))
    with pytest.raises(SpecError, match="the formats of their scores differ: 3 and 2"):
        Pair.open(*pair)


VERSIONS = {"data": {"digits": 1}, "forget": {"indices": 1}, "method": {"npo": 1}, "audit": {"loss": 2, "path": 1}}


def kept(folder: Path) -> Path:
    return folder.rename(folder.parent / "kept")


@pytest.mark.parametrize("changed", [("data", "digits"), ("forget", "indices"), ("audit", "path")])
def test_another_version_of_what_is_measured_is_refused(
    make_run: Callable[..., Path], changed: tuple[str, str]
) -> None:
    table, part = changed
    first = kept(make_run(versions=VERSIONS))
    second = make_run(versions=VERSIONS | {table: {part: 3}})
    ours = VERSIONS[table][part]
    with pytest.raises(SpecError, match=re.escape(f"{table} '{part}' has version {ours} in sample (1) and 3 in")):
        Pair.open(first, second)
    verify(second)


def test_another_version_of_a_method_is_a_setting(make_run: Callable[..., Path]) -> None:
    first = kept(make_run(versions=VERSIONS))
    # What only one of them measured, or under another name, is not held against the other.
    second = make_run(versions=VERSIONS | {"method": {"npo": 2, "scrub": 1}, "audit": {"path": 1, "probe": 7}})
    found = [line for line in Pair.open(first, second).settings() if line["key"].startswith("version")]
    assert found == [{"key": "version.method.npo", "first": 1, "second": 2}]


def test_records_from_before_versions_were_kept_are_compared(make_run: Callable[..., Path]) -> None:
    first = kept(make_run())
    for pair in ((first, make_run(versions=VERSIONS)), (make_run(versions=VERSIONS), first)):
        assert Pair.open(*pair).settings() == []


def test_no_common_seed_and_another_claim_are_refused(pair: tuple[Path, Path], make_run: Callable[..., Path]) -> None:
    shutil.rmtree(pair[1])
    with pytest.raises(SpecError, match=re.escape("their seeds differ: [0, 1, 2] and [7, 8]")):
        Pair.open(pair[0], make_run(OTHER, seeds=[7, 8]))
    shutil.rmtree(pair[1])
    with pytest.raises(SpecError, match="about one model"):
        Pair.open(pair[0], make_run(OTHER, about_one_model=True))


def test_lists_of_tables_are_compared_by_label() -> None:
    ours = {"method": [{"name": "a", "x": 1}, {"name": "b"}]}
    theirs = {"method": [{"name": "b"}, {"name": "a", "x": 2}, {"name": "a", "label": "c"}]}
    found = list(differences(ours, theirs, ""))
    assert found == [("method.a.x", 1, 2), ("method.c", None, {"name": "a", "label": "c"})]


def test_the_leaderboard_has_a_row_per_run_and_method(pair: tuple[Path, Path]) -> None:
    rows = leaderboard(pair)
    assert [(row["method"], row["verdict"]) for row in rows] == [
        ("clean", "erased"),
        ("hidden", "dormant"),
        ("hidden", "dormant"),
        ("third", "erased"),
    ]
    hidden = rows[1]
    assert hidden["task"] == "indices on digits, mlp"
    assert hidden["before"]["value"] == pytest.approx(0.1) and hidden["after"]["value"] == pytest.approx(0.8)
    assert hidden["before"]["low"] < 0.1 < hidden["before"]["high"]
    assert hidden["utility"]["value"] == pytest.approx(0) and hidden["cost"] == pytest.approx(0.05)


def test_the_leaderboard_as_markdown(make_run: Callable[..., Path]) -> None:
    text = markdown(leaderboard([make_run()]))
    head, rule, clean, hidden, *_ = (line.split("|")[1:-1] for line in text.splitlines())
    assert {len(line) for line in (head, rule, clean, hidden)} == {8}
    assert [word.strip() for word in clean[2:4]] == ["clean", "erased"]
    assert hidden[4].strip().startswith("+10.0 ±") and hidden[5].strip().endswith("(relearn)")
    assert hidden[7].strip() == "5.0 %"


def test_without_attacks_or_costs_cells_are_empty(make_run: Callable[..., Path]) -> None:
    folder = make_run(attacks=[])
    manifest = json.loads((folder / "manifest.json").read_text())
    for stage in manifest["stages"]:
        stage["gradients"] = 0
    (folder / "manifest.json").write_text(json.dumps(manifest))
    [row, _] = leaderboard([folder])
    assert row["after"] is None and row["cost"] is None
    cells = markdown([row]).splitlines()[2].split("|")
    assert cells[6].strip() == "" and cells[8].strip() == ""
