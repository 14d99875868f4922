"""Settings are chosen by a number on other seeds; a candidate that diverges is out, and ends nobody else's trial."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expunge.base.errors import RunError
from expunge.study.choose import choose, near_retrained
from expunge.study.study import Work

BASE: Mapping[str, Any] = {
    "data": {"name": "digits", "train": 120, "test": 60},
    "model": {"name": "mlp", "widths": [16]},
    "train": {"epochs": 6, "learning_rate": 0.01},
    "forget": {"name": "label_swap", "count": 12},
    "seeds": [7],
}
STILL, RIGHT, WILD = ({"name": "finetune", "epochs": 3, "learning_rate": rate} for rate in (1e-12, 1e-2, 1e30))
LONG = {"name": "finetune", "epochs": 30, "learning_rate": 1e-2}


def test_what_diverges_is_out_and_the_others_are_still_compared(tmp_path: Path) -> None:
    found = choose(
        Work(tmp_path, "toy"), {"one": BASE}, {"a": [STILL, WILD, LONG], "b": [STILL, RIGHT]}, near_retrained
    )
    assert found["entries"]["a"] != WILD
    values = list(found["tried"].values())
    assert values[1] == -np.inf and np.isfinite([*values[:1], *values[2:]]).all()
    # The same as where nothing had diverged.
    calm = choose(Work(tmp_path, "calm"), {"one": BASE}, {"a": [STILL, LONG], "b": [STILL, RIGHT]}, near_retrained)
    assert [v for v in values if np.isfinite(v)] == list(calm["tried"].values())
    assert found["entries"] == calm["entries"]


def test_where_all_diverge_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"every candidate of 'a' failed.*not finite"):
        choose(Work(tmp_path, "toy"), {"one": BASE}, {"a": [WILD, WILD], "b": [STILL, RIGHT]}, near_retrained)


def test_of_a_single_candidate_nothing_is_run(tmp_path: Path) -> None:
    assert choose(Work(tmp_path, "toy"), {"one": BASE}, {"a": [WILD]}, near_retrained)["entries"] == {"a": WILD}
    assert not list(tmp_path.iterdir())
