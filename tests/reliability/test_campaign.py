"""A small share of the reliability campaign; `python -m tests.reliability --full` is all of it."""

from __future__ import annotations

import pytest
from campaign import KINDS
from campaign.count import campaign


@pytest.mark.parametrize("name", KINDS)
def test_nothing_goes_wrong_whatever_happens_to_what_is_read(name: str) -> None:
    kind = KINDS[name]
    assert campaign(kind, 1, kind.small).findings == []
