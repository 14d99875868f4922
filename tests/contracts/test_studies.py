"""What every registered study keeps to: claims that can be contradicted, presets at every scale, a quick run that measures."""

from __future__ import annotations

import math
import time
from collections import Counter
from pathlib import Path

import pytest

from expunge.base import registry
from expunge.base.errors import MissingError
from expunge.reporting.study import read_study
from expunge.studies._run import run_study
from expunge.studies._study import PRESETS, Study, at_preset

STUDIES = registry.names("study")


def load(name: str) -> type[Study]:
    return registry.load("study", name)


@pytest.mark.parametrize("name", STUDIES)
def test_claims_can_be_contradicted(name: str) -> None:
    claims = load(name).claims
    assert max(Counter(c.id for c in claims).values()) == 1
    assert 1 <= sum(c.primary for c in claims) <= 3
    for claim in claims:
        assert claim.statement.endswith(".")
        assert claim.source and claim.unit and len(claim.rule.reason) > 10
        # Some number passes and some number fails.
        assert math.isfinite(claim.rule.low) or math.isfinite(claim.rule.high)


@pytest.mark.parametrize("name", STUDIES)
def test_presets_at_every_scale(name: str) -> None:
    found = load(name)
    assert tuple(found.presets) == PRESETS
    assert len(found.presets["cpu"].seeds) >= (3 if name in ("rem", "curvature") else 5)
    for preset in PRESETS:
        if found.presets[preset].lacks:
            with pytest.raises(MissingError):
                at_preset(found, preset)
        else:
            at_preset(found, preset)


@pytest.mark.parametrize("name", STUDIES)
def test_the_quick_preset_measures(name: str, tmp_path: Path) -> None:
    start = time.perf_counter()
    found = read_study(run_study(name, "quick", tmp_path, workers=2))
    told = f"{name} took {time.perf_counter() - start:.0f} s"
    measured = [c for c in found["claims"] if c["measured"]["n"]]
    assert measured, told
    assert {c["id"] for c in measured} >= {c.id for c in load(name).claims if c.primary}, told
    assert (tmp_path / "studies" / f"{name}-quick" / "report.html").stat().st_size < 1_000_000


def test_reproduction_is_made_from_the_results() -> None:
    import sys

    root = Path(__file__).resolve().parents[2]
    sys.path.insert(0, str(root / "scripts"))
    import reproduction

    assert (root / "REPRODUCTION.md").read_text(encoding="utf-8") == reproduction.text()
