"""A method that edits only what lies above a representation is not `erased` before an audit read the layers that it kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from _world import FORGET, World, images, mixed_labels, right

from expunge.evidence.scores import Scores
from expunge.evidence.table import Measured, Table

SEEDS = 6


@pytest.fixture(scope="module")
def erased() -> Table:
    """Scores of answers by which `model` is erased."""
    labels = mixed_labels()
    clean = right(labels, 0.3)
    attacked = {None: clean, "relearn": clean}
    table = World(
        images(labels), {"original": {None: right(labels, 1.0)}, "reference": attacked, "model": attacked}
    ).table()
    assert table.verdicts()[0].flags == ["erased"]
    return table


def hidden(metric: str, differing: int = 0, missing: int = 0) -> list[Measured]:
    """An audit's values for the original, and the same for the model but in these many seeds."""
    measured = []
    for seed in range(SEEDS):
        values = (np.random.default_rng(seed).random(FORGET) < 0.9).astype(float)
        other = 1 - values if seed < differing else values
        for name, kept in (("original", values), ("model", other))[: 1 if seed < missing else 2]:
            scores = Scores(metric, "forget", kept, np.arange(FORGET), "description", "share", "reference")
            measured.append(Measured(name, seed, None, scores))
    return measured


@pytest.mark.parametrize(
    ("audits", "flag"),
    [
        ([], "inconclusive"),
        (hidden("recoverability"), "erased"),
        (hidden("patched"), "erased"),
        (hidden("patched") + hidden("recoverability", differing=1), "erased"),
        # Above the first change, in one seed or in all.
        (hidden("recoverability", differing=1), "inconclusive"),
        (hidden("patched", differing=SEEDS), "inconclusive"),
        (hidden("recoverability", missing=1), "inconclusive"),
        # It does not read hidden states.
        (hidden("l2_distance"), "inconclusive"),
    ],
    ids=["none", "probe", "patching", "one of two", "one seed above", "above", "one seed without", "other audit"],
)
def test_only_an_audit_below_the_first_change_clears(erased: Table, audits: list[Measured], flag: str) -> None:
    table = replace(erased, measured=[*erased.measured, *audits], kept={"model": "9"})
    verdict = table.verdicts()[0]
    assert (verdict.verdict, verdict.flags) == (flag, [flag])
    assert ("'9' and all layers below it are the original's" in verdict.reasons[0]) == (flag == "inconclusive")


def test_rows_stay_and_other_methods_do(erased: Table) -> None:
    assert replace(erased, kept={"other": "9"}).verdicts() == erased.verdicts()
    assert replace(erased, kept={"model": "9"}).rows() == erased.rows()


def test_an_accusation_stays() -> None:
    labels = mixed_labels()
    known = right(labels, 1.0)
    models = {"original": {None: known}, "reference": {None: right(labels, 0.3)}, "model": {None: known}}
    table = World(images(labels), models).table()
    assert replace(table, kept={"model": "9"}).verdicts() == table.verdicts()
