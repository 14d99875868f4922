"""`expunge clean`: what the cache holds, what no run needs, and that nothing is removed unasked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers import cli, contents, finished, run, stages_done, tiny


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that share stages."""
    out = tmp_path_factory.mktemp("clean") / "runs"
    finished(run(tiny(), out))
    finished(run(tiny(name="more", method=[{"name": "finetune", "epochs": 1}]), out))
    return out


@pytest.fixture
def out(runs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs, tmp_path / "runs"))


def counts(out: Path, *arguments: str) -> Any:
    return json.loads(finished(cli("clean", "--out", out, "--json", *arguments)).out)


def test_a_cache_that_runs_need_stays_whole(out: Path) -> None:
    before = contents(out)
    found = counts(out, "--yes")
    assert found["outputs"] == len(stages_done(out)) == 42 and found["unneeded"] == {"outputs": 0, "bytes": 0}
    held = sum(path.stat().st_size for path in (out / "cache").rglob("*") if path.is_file())
    assert found["bytes"] == held == sum(kind["bytes"] for kind in found["kinds"].values())
    assert contents(out) == before
    assert "every output is needed by a run" in finished(cli("clean", "--out", out)).out


def test_what_no_run_needs_is_listed_and_removed_on_request_only(out: Path) -> None:
    shutil.rmtree(out / "more")
    before = contents(out)
    listed = counts(out)
    assert listed["unneeded"]["outputs"] == 12 and listed["removed"] is False and contents(out) == before
    text = finished(cli("clean", "--out", out)).out
    assert "no run needs 12 outputs" in text and "--yes" in text
    assert counts(out, "--yes")["removed"] is True and len(stages_done(out)) == 30
    again = finished(run(tiny(), out))
    assert "30 of 30 stages are already done" in again.err


def test_a_run_that_was_interrupted_keeps_what_it_computed(out: Path) -> None:
    (out / "more" / "manifest.json").unlink()
    assert counts(out)["unneeded"]["outputs"] == 0
    # A finished run that was started again with another method, and interrupted.
    changed = tiny(method=[{"name": "finetune", "epochs": 2}, {"name": "random_relabel", "learning_rate": 1e30}])
    assert run(changed, out).code == 4
    assert counts(out)["unneeded"]["outputs"] == 0 and len(stages_done(out)) > 42


@pytest.mark.parametrize("harm", ["no stage.json", "a file", "an empty folder"])
def test_what_is_no_output_is_listed_as_damaged_and_removed(harm: str, out: Path) -> None:
    place = out / "cache" / "mine"
    if harm == "a file":
        place.write_text("x")
    else:
        place.mkdir()
        if harm == "no stage.json":
            (place / "weights.safetensors").write_text("xyz")
    found = counts(out, "--yes")["kinds"]["damaged"]
    assert found["outputs"] == 1 and not place.exists()


def test_the_cache_of_studies_is_listed_too(out: Path) -> None:
    (out / "studies").mkdir()
    shutil.copytree(out / "cache", out / "studies" / "cache")
    caches = counts(out)["caches"]
    assert [caches[str(out / name)]["unneeded"]["outputs"] for name in ("cache", "studies/cache")] == [0, 42]


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    refused = cli("clean", "--out", tmp_path / "none")
    assert refused.code == 2 and "there is no folder" in refused.message()
