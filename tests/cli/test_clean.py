"""`expunge clean`: what the cache holds, what no run needs, and that nothing is removed unasked."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
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
    place = out / "cache" / ("0" * 32)
    if harm == "a file":
        place.write_text("x")
    else:
        place.mkdir()
        if harm == "no stage.json":
            (place / "weights.safetensors").write_text("xyz")
    found = counts(out, "--yes")["kinds"]["damaged"]
    assert found["outputs"] == 1 and not place.exists()


def outside(out: Path) -> Path:
    folder = out.parent / "mine"
    (folder / ("a" * 32)).mkdir(parents=True)
    (folder / ("a" * 32) / "letter.txt").write_text("mine")
    return folder


def received(out: Path) -> Path:
    """A folder from somebody else beside the runs."""
    (out / "theirs").mkdir()
    return out / "theirs"


def log(text: str) -> Callable[[Path], object]:
    return lambda out: (received(out) / "events.jsonl").write_text(text)


FOREIGN: dict[str, Callable[[Path], object]] = {
    "a link in place of a run's cache": lambda out: (received(out) / "cache").symlink_to(outside(out)),
    "a linked folder with a cache": lambda out: (out / "theirs").symlink_to(with_cache(out)),
    "a link in the cache": lambda out: (out / "cache" / ("b" * 32)).symlink_to(outside(out) / ("a" * 32)),
    "a folder of another program": lambda out: shutil.copytree(outside(out), out / "cache" / "mine"),
    "an old hidden folder of another program": lambda out: aged(shutil.copytree(outside(out), out / "cache" / ".a.b")),
    "a log with a list as key": log('{"at": "2026-01-01T00:00:00+00:00", "key": [1]}\n'),
    "a log of the year 1": log('{"at": "0001-01-01T00:00:00", "key": "a"}\n{"at": 1, "key": {}}\n[1]\n"a"\n'),
    "a log that is a link": lambda out: (received(out) / "events.jsonl").symlink_to("/dev/zero"),
    "a log that is a pipe": lambda out: os.mkfifo(received(out) / "events.jsonl"),
}


def with_cache(out: Path) -> Path:
    shutil.copytree(outside(out), out.parent / "other" / "cache")
    return out.parent / "other"


def aged(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (0, 0))


@pytest.mark.parametrize("what", FOREIGN)
def test_nothing_of_others_is_removed_and_nothing_of_theirs_ends_it(what: str, out: Path) -> None:
    FOREIGN[what](out)
    kept = list(out.parent.rglob("letter.txt"))
    before = stages_done(out)
    assert counts(out, "--yes")["unneeded"]["outputs"] == (1 if what == "a link in the cache" else 0)
    assert [path for path in kept if not path.exists()] == [] and stages_done(out) == before


def test_the_cache_of_studies_is_listed_too(out: Path) -> None:
    (out / "studies").mkdir()
    shutil.copytree(out / "cache", out / "studies" / "cache")
    caches = counts(out)["caches"]
    assert [caches[str(out / name)]["unneeded"]["outputs"] for name in ("cache", "studies/cache")] == [0, 42]


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    refused = cli("clean", "--out", tmp_path / "none")
    assert refused.code == 2 and "there is no folder" in refused.message()
