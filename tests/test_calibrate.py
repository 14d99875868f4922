"""The script that calibrates hardness: it finds a known line, through runs that were stopped, and what ships is its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from expunge.diagnostics import hardness

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import calibrate  # noqa: E402


def runs(count: int, seed: int, spread: float = 0.5) -> list[tuple[float, float]]:
    """measured = e^2 predicted^0.8 with noise, stopped at 1,000; some predicted not to forget in time."""
    draw = np.random.default_rng(seed)
    x = np.exp(draw.uniform(1, 7.5, count))
    y = np.exp(2 + 0.8 * np.log(x) + spread * draw.standard_normal(count))
    return [(min(a, 1000.0), min(b, 1000.0)) for a, b in zip(x, y, strict=True)]


def test_a_known_line_is_found_through_runs_that_were_stopped() -> None:
    pairs = runs(4000, 0)
    assert sum(b == 1000 > a for a, b in pairs) > 300
    assert calibrate.fitted(pairs) == pytest.approx((2.0, 0.8, 0.5), abs=0.06)
    # Without those the line is too flat.
    assert calibrate.fitted([pair for pair in pairs if pair[1] < 1000])[1] < 0.75


def test_nine_of_ten_runs_of_other_seeds_lie_in_the_interval() -> None:
    found = calibrate.calibration({str(seed): runs(200, seed) for seed in range(5)})
    assert found["left_out"] == pytest.approx(0.9, abs=0.03)
    assert found["runs"] == sum(a < 1000 for seed in range(5) for a, _ in runs(200, seed))
    inside, count = calibrate.covered([(10.0, 1000.0), (10.0, 20.0), (10.0, 1e-3)], (1.0, 0.8, 0.5))
    assert (inside, count) == (1, 3)


def test_what_ships_was_made_from_the_results() -> None:
    path = Path(hardness.__file__).with_name("hardness.json")
    assert json.loads(path.read_text(encoding="utf-8")) == calibrate.from_results()
