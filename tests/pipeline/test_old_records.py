"""Records that earlier versions wrote still verify, and their pages can be written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from expunge.base.manifest import Manifest, read_manifest, write_manifest
from expunge.base.record import file_digest
from expunge.reporting.compare import Pair
from expunge.reporting.record import Run
from helpers import cli, finished

FIXTURES = Path(__file__).parents[1] / "fixtures"
RECORDS = sorted(path.parent.relative_to(FIXTURES) for path in FIXTURES.glob("*/*/manifest.json"))


@pytest.mark.parametrize("record", RECORDS, ids=str)
def test_an_old_record_verifies_and_is_shown(record: Path, tmp_path: Path) -> None:
    folder = tmp_path / record.name
    shutil.copytree(FIXTURES / record, folder)
    assert "agree" in finished(cli("verify", folder)).out
    finished(cli("report", folder))
    assert (folder / "report.html").stat().st_size > 10_000


def test_there_are_records_of_a_run_and_of_a_notebook() -> None:
    assert {path.parts for path in RECORDS} >= {("format1", "spec_run"), ("format1", "notebook")}


def test_the_names_of_format_1_are_read_under_todays() -> None:
    run = Run.open(FIXTURES / "format1" / "spec_run")
    assert {stage.kind for stage in run.manifest.stages} >= {"diagnostic", "audit", "gallery"}
    assert "probe" not in {*run.spec, *(stage.kind for stage in run.manifest.stages)}
    assert run.spec["diagnostic"] == [{"name": "memorization", "nets": 2}]
    [entry] = run.diagnosis
    assert entry["diagnostic"] == "memorization" and "probe" not in entry
    assert [row["predicts"] for row in entry["rows"]][:3] == ["original", "reference", "range"]


def test_an_old_record_is_compared_with_one_of_today(tmp_path: Path) -> None:
    old, new = FIXTURES / "format1" / "spec_run", tmp_path / "new"
    shutil.copytree(old, new)
    held = read_manifest(new)
    assert held.format == 1
    facts = {name: getattr(held, name) for name in Manifest.__struct_fields__ if name != "format"}
    files = held.files | {name: file_digest(new / name) for name in ("spec.json", "env.json")}
    write_manifest(new, Manifest(**(facts | {"files": files})))
    assert read_manifest(new).format == 3
    assert finished(cli("verify", new)).code == 0
    pair = Pair.open(old, new)
    assert all(row["difference"]["value"] == 0 for row in pair.rows() if row["difference"] is not None)
