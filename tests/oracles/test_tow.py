"""ToW against a product by hand, from rows as a table makes them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from expunge.evidence.scores import Role, Scores
from expunge.evidence.table import Measured, Table
from expunge.evidence.tow import tow, tow_rows


def scores(value: float, metric: str, split: str, role: Role) -> Scores:
    values = np.array([1.0] * round(10 * value) + [0.0] * (10 - round(10 * value)))
    return Scores(metric, split, values, np.arange(10), role, "share", "reference")


PARTS: tuple[tuple[str, str, Role], ...] = (
    ("accuracy", "forget", "knowledge"),
    ("accuracy", "retain", "description"),
    ("accuracy", "test", "utility"),
    ("membership_confidence", "forget", "knowledge"),
)
VALUES = {"reference": (0.5, 1.0, 0.9, 0.2), "npo": (0.2, 0.9, 0.8, 0.7)}


def table(attack: str | None = None, parts: int = 4) -> Table:
    measured = [
        Measured(model, seed, attack, scores(value, *part))
        for seed in (0, 1)
        for model, values in VALUES.items()
        for value, part in zip(values[:parts], PARTS[:parts], strict=True)
    ]
    return Table(measured, ["reference", "npo"], [0, 1], [attack] if attack else [])


def test_one_for_the_retrained_models_accuracies_and_less_for_any_gap() -> None:
    assert tow([0.0, 0.0, 0.0]) == 1.0
    assert tow([0.3, -0.1, 0.1]) == tow([-0.3, 0.1, -0.1]) == pytest.approx(0.7 * 0.9 * 0.9)
    assert tow([1.0, 0.0, 0.0]) == 0.0


@pytest.mark.parametrize("attack", [None, "relearn"])
def test_rows_follow_from_gaps(attack: str | None) -> None:
    found = [row for row in table(attack).rows() if row["metric"].startswith("tow")]
    assert [(row["model"], row["metric"], row["seed"], row["attack"]) for row in found] == [
        ("npo", metric, seed, attack) for metric in ("tow", "tow_mia") for seed in (0, 1, None)
    ]
    assert [row["value"] for row in found] == pytest.approx([0.7 * 0.9 * 0.9] * 3 + [0.5 * 0.9 * 0.9] * 3)
    assert all(row["gap"] == pytest.approx(row["value"] - 1) for row in found)
    assert {tuple(row) for row in table(attack).rows()} == {tuple(found[0])}
    assert math.isnan(found[0]["low"]) and found[2]["n"] == 2


def test_no_row_where_a_part_or_the_reference_is_missing() -> None:
    assert {row["metric"] for row in table(parts=3).rows()} == {"accuracy", "tow"}
    assert not tow_rows([row for row in table().rows() if row["split"] != "test"])
    alone = table()
    without = Table([m for m in alone.measured if m.model != "reference"], ["npo"], [0, 1], [])
    assert not [row for row in without.rows() if row["metric"].startswith("tow")]
