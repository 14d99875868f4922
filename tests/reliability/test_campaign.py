"""A small share of the reliability campaign; `python -m tests.reliability --full` is all of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from campaign import KINDS
from campaign.count import campaign
from campaign.counts import text

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", KINDS)
def test_nothing_goes_wrong_whatever_happens_to_what_is_read(name: str) -> None:
    kind = KINDS[name]
    assert campaign(kind, 1, kind.small).findings == []


def test_the_page_has_the_counts_of_the_last_campaign() -> None:
    table = json.loads((ROOT / "tests" / "reliability" / "counts.json").read_text())
    assert text(table) in (ROOT / "docs" / "reliability.md").read_text()
