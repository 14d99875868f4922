"""Places in messages: what the outer place and the inner place both name is named once."""

from __future__ import annotations

import pytest

from expunge.base.errors import SpecError


@pytest.mark.parametrize(
    ("outer", "inner", "joined"),
    [
        ("attack 'recalibrate'", "attack.recalibrate (ResNet)", "attack 'recalibrate' (ResNet)"),
        ("attack 'relearn'", "attack.k", "attack 'relearn'.k"),
        ("method 'mine'", "method 'mine'", "method 'mine'"),
        ("data", "data.train", "data.train"),
        ("audit 'probe'", "probe", "audit 'probe'.probe"),
        ("attack[0]", "k", "attack[0].k"),
        ("attack[0]", "", "attack[0]"),
        ("attack", "attacked.k", "attack.attacked.k"),
    ],
)
def test_a_place_is_named_once(outer: str, inner: str, joined: str) -> None:
    assert SpecError("finding", where=inner).at(outer).where == joined
