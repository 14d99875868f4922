"""What every registered study keeps to: claims that can be contradicted, presets at every scale, a quick run that measures."""

from __future__ import annotations

import math
import time
from collections import Counter
from pathlib import Path

import pytest

from expunge.base import registry
from expunge.base.errors import MissingError
from expunge.evidence.claim import decide
from expunge.reporting.study import read_study
from expunge.study.run import run_study
from expunge.study.study import PRESETS, Study, at_preset

ROOT = Path(__file__).resolve().parents[2]
STUDIES = registry.names("study")
COUNTS = {
    "dormant": 22,
    "rem": 18,
    "stability": 20,
    "edge_of_stability": 14,
    "feature_unlearning": 11,
    "decoupled_st": 17,
    "bilinear": 15,
    "dvnc": 26,
    "cb_icl": 24,
    "curvature": 23,
    "syncx": 14,
}
"""Declared claims of the first studies: none may be dropped once it was measured."""
RESULTS = sorted((ROOT / "results").glob("*.json"))


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


@pytest.mark.parametrize("name", COUNTS)
def test_no_claim_is_dropped(name: str) -> None:
    assert len(load(name).claims) >= COUNTS[name]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_kept_results_were_decided_by_the_rules_that_are_declared(path: Path) -> None:
    result = read_study(path)
    # Decided without a measurement: everything but the numbers, as it is written.
    declared = {finding.claim.id: finding.as_json() for finding in decide(load(result["study"]).claims, [])}
    # A claim that is declared and not measured yet may be missing from the results, but not the other way round.
    assert {claim["id"] for claim in result["claims"]} <= declared.keys()
    for claim in result["claims"]:
        for key in ("statement", "source", "primary", "paper_value", "rule"):
            assert claim[key] == declared[claim["id"]][key], claim["id"]
        assert claim["measured"]["unit"] == declared[claim["id"]]["measured"]["unit"]


@pytest.mark.parametrize("name", STUDIES)
def test_presets_at_every_scale(name: str) -> None:
    found = load(name)
    assert tuple(found.presets) == tuple(PRESETS)
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
    # Processes for one study; a new pool for each run of each study would take longer than the studies themselves.
    found = read_study(run_study(name, "quick", tmp_path, workers=2 if name == "stability" else 1))
    told = f"{name} took {time.perf_counter() - start:.0f} s"
    measured = [c for c in found["claims"] if c["measured"]["n"]]
    assert measured, told
    assert {c["id"] for c in measured} >= {c.id for c in load(name).claims if c.primary}, told
    assert (tmp_path / "studies" / f"{name}-quick" / "report.html").stat().st_size < 1_000_000


def test_reproduction_is_made_from_the_results() -> None:
    import sys

    sys.path.insert(0, str(ROOT / "scripts"))
    import reproduction

    assert (ROOT / "REPRODUCTION.md").read_text(encoding="utf-8") == reproduction.text()
