"""A run's folder holds one run: what would change its rows is refused, what adds rows is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers import finished, run, tiny

CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "data": ({"data": {"name": "digits", "train": 121, "test": 60}}, "data.train was 120, is 121"),
    "augmentation": ({"augmentation": [{"name": "noise"}]}, "augmentation was None"),
    "training": ({"train": {"epochs": 7, "learning_rate": 0.01}}, "train.epochs was 6, is 7"),
    "seeds": ({"seeds": [0]}, "seeds was [0, 1], is [0]"),
    "precision": ({"precision": "bf16"}, "precision was 'float32', is 'bf16'"),
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("folder") / "runs"
    finished(run(tiny(), out))
    return out


@pytest.mark.parametrize("name", CHANGES)
def test_another_run_is_refused(name: str, out: Path) -> None:
    changes, said = CHANGES[name]
    refused = run(tiny(**changes), out)
    assert refused.code == 2 and said in refused.message(), refused.message()


def test_more_audits_are_added(out: Path) -> None:
    finished(run(tiny(audit=[{"name": "loss"}, {"name": "distance"}]), out))


def test_a_function_is_a_diagnostic(tmp_path: Path) -> None:
    (tmp_path / "my_looks.py").write_text(
        "from expunge.evidence.estimate import Estimate\n\n\n"
        "def size(case, seed):\n"
        "    return {'examples to forget': Estimate(12.0, 12.0, 12.0, 1, 'examples', 'lower')}\n"
    )
    done = finished(run(tiny(diagnostic=[{"name": "my_looks:size"}]), tmp_path / "runs"))
    assert "my_looks" in (tmp_path / "runs" / "tiny" / "diagnosis.json").read_text() and done.code == 0
