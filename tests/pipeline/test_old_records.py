"""Records that earlier versions wrote still verify, and their pages can be written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

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
