"""What runs studies: seeds in any number of processes, resumed, decided, shown."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import _toy_study as toy
import pytest

from expunge.base.errors import MissingError, RunError, SpecError
from expunge.reporting.study import next_step, study_table
from expunge.study.run import run_study
from helpers import cli, finished, snapshot

NAME = f"{toy.__name__}:Toy"


def read(folder: Path) -> dict:
    return json.loads((folder / "study.json").read_text())


def test_the_number_of_workers_changes_no_number(tmp_path: Path) -> None:
    one, two = (read(run_study(NAME, "quick", tmp_path / str(n), workers=n)) for n in (1, 2))
    assert one["measured"] == two["measured"]
    assert len({json.dumps(m) for m in one["measured"].values()}) == 4  # every seed its own draws


def test_the_executor_that_the_option_names_runs_the_seeds(
    tmp_path: Path, measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ("study", NAME, "--preset", "quick", "--workers", 2, "--on", f"{toy.__name__}:Noting")
    finished(cli(*arguments, "--out", tmp_path / "runs"))
    assert Path("noted").read_text() == "4 tasks, 2 workers"
    assert read(tmp_path / "runs" / "studies" / measured.name)["measured"] == read(measured)["measured"]


def test_claims_are_decided_in_their_order(tmp_path: Path) -> None:
    found = read(run_study(NAME, "quick", tmp_path))["claims"]
    assert [c["id"] for c in found] == ["mean", "order", "absent"]
    assert [c["verdict"] for c in found] == ["reproduced", "reproduced", "inconclusive"]
    assert list(found[1]["measured"]["parts"]) == ["a", "b", "c"] and not found[0]["measured"]["parts"]
    assert found[2]["note"] == "not measured at this preset"
    assert found[2]["measured"]["n"] == 0


def test_a_failed_seed_keeps_the_others_and_is_all_that_runs_again(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="it failed"):
        run_study(NAME, "long", tmp_path)
    folder = next((tmp_path / "studies").glob("*Toy-long"))
    assert not (folder / "study.json").exists()
    (folder / "mended").touch()
    run_study(NAME, "long", tmp_path)
    assert (tmp_path / "studies" / "log").read_text().split() == ["0", "1"]


def test_another_scale_is_measured_again(tmp_path: Path) -> None:
    run_study(NAME, "quick", tmp_path, seeds=[0])
    log = tmp_path / "studies" / "log"
    run_study(NAME, "quick", tmp_path, seeds=[0])
    assert log.read_text().split() == ["0"]
    folder = next((tmp_path / "studies").glob("*Toy-quick-s0"))
    run_study(NAME, "quick", tmp_path, seeds=[0, 1])
    # The entry of another seed is whole, but answers another question.
    path, other = folder / "seeds" / "0.json", next((tmp_path / "studies").glob("*Toy-quick-s0-1")) / "seeds" / "1.json"
    path.write_bytes(other.read_bytes())
    run_study(NAME, "quick", tmp_path, seeds=[0])
    assert log.read_text().split() == ["0", "0", "1", "0"]


def rewritten(change: Callable[[dict], object]) -> Callable[[Path], object]:
    def act(path: Path) -> None:
        entry = json.loads(path.read_text())
        change(entry)
        path.write_text(json.dumps(entry))

    return act


def in_its_place(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def act(path: Path) -> None:
        path.unlink()
        make(path)

    return act


DAMAGES: dict[str, Callable[[Path], object]] = {
    "another number": rewritten(lambda entry: entry["measured"].update(mean=9.0)),
    "another time": rewritten(lambda entry: entry.update(seconds=0.25)),
    "a number more": rewritten(lambda entry: entry["measured"].update({"mean.sampling": 0.1})),
    "no digest": rewritten(lambda entry: entry.pop("sha256", entry["measured"].update(mean=9.0))),
    "no results": rewritten(lambda entry: entry.pop("measured")),
    "half a file": lambda path: path.write_text('{"key": '),
    "nothing": lambda path: path.write_text(""),
    "a list": lambda path: path.write_text("[1]"),
    "no text": lambda path: path.write_bytes(b"\xff\xfe"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "a folder": in_its_place(Path.mkdir),
    "a pipe": in_its_place(os.mkfifo),
    "a link": in_its_place(lambda path: path.symlink_to("0.json")),
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_study(NAME, "quick", tmp_path_factory.mktemp("toy"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_result_of_a_seed_is_measured_again_and_said(
    damage: str, measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "studies" / measured.name
    shutil.copytree(measured.parent, folder.parent)
    DAMAGES[damage](folder / "seeds" / "2.json")
    assert read(run_study(NAME, "quick", tmp_path))["measured"] == read(measured)["measured"]
    assert capsys.readouterr().err.count("damaged result of seed 2: ") == 1
    assert (tmp_path / "studies" / "log").read_text().split()[4:] == ["2"]
    run_study(NAME, "quick", tmp_path)
    assert capsys.readouterr().err == ""


def test_only_the_owner_reads_the_results(measured: Path) -> None:
    assert measured.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["study.json", "report.html"])
def test_a_folder_in_the_place_of_a_result_is_named(name: str, tmp_path: Path) -> None:
    folder = run_study(NAME, "quick", tmp_path, seeds=[0])
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(RunError, match="a folder is in the way"):
        run_study(NAME, "quick", tmp_path, seeds=[0])


def test_the_page_shows_every_claim_and_figure(tmp_path: Path) -> None:
    page = (run_study(NAME, "quick", tmp_path) / "report.html").read_text()
    for words in ("The mean is positive.", "Means", "Plane", "not measured at this preset", "--preset quick"):
        assert words in page
    assert page.count("<svg") == 2


@pytest.mark.parametrize(
    ("preset", "seeds", "why", "command"),
    [
        ("quick", (0,), "One seed decides no claim", "--preset cpu"),
        ("cpu", (3,), "One seed decides no claim", "--preset cpu"),
        ("quick", (), "Preset quick is too small", "--preset cpu"),
        ("cpu", (), "1 claim cannot be measured at preset cpu", "--preset long"),
    ],
)
def test_claims_that_are_left_open_say_why_and_what_decides_them(
    preset: str, seeds: tuple[int, ...], why: str, command: str, tmp_path: Path
) -> None:
    folder = run_study(NAME, preset, tmp_path, seeds=seeds or None)
    text, page = study_table(read(folder)), (folder / "report.html").read_text()
    for words in (why, f"expunge study {NAME} {command}"):
        assert words in text and words in page
    assert "tally" in page


def test_seeds_that_would_decide_become_a_command() -> None:
    claim = {"verdict": "inconclusive", "needed": 5, "measured": {"n": 3}}
    result = {"study": "toy", "preset": "cpu", "seeds": [0, 2], "claims": [claim, claim | {"needed": 90}]}
    why, command = next_step(result)
    assert why == "1 of the 2 open claims would be decided by 5 seeds."
    assert command == "expunge study toy --preset cpu --seed 0 --seed 2 --seed 1 --seed 3 --seed 4"
    assert next_step(result | {"claims": [claim | {"verdict": "reproduced"}]}) == ("Every claim is decided.", "")


def test_a_dry_run_says_what_would_run_and_writes_nothing(tmp_path: Path, measured: Path) -> None:
    shutil.copytree(measured.parent, tmp_path / "studies")
    before = snapshot(tmp_path)
    arguments = ("study", NAME, "--out", tmp_path, "--dry-run")
    text = finished(cli(*arguments, "--preset", "quick")).out
    assert "seeds   0, 1, 2, 3" in text and "stored  seeds 0, 1, 2, 3" in text and "about 20 seconds" in text
    assert "One seed decides no claim" in finished(cli(*arguments, "--seed", 7)).out
    facts = json.loads(finished(cli(*arguments, "--preset", "cpu", "--json")).out)
    assert (facts["claims"], facts["primary"], facts["stored"], facts["status"]) == (3, 1, [], "planned")
    assert cli(*arguments, "--preset", "paper").code == 3 and cli(*arguments, "--on", "ray").code == 2
    assert snapshot(tmp_path) == before


def test_what_cannot_be_run_is_refused_beforehand(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="a larger machine"):
        run_study(NAME, "paper", tmp_path)
    with pytest.raises(SpecError, match="did you mean 'quick'"):
        run_study(NAME, "quik", tmp_path)
    with pytest.raises(SpecError, match="each once"):
        run_study(NAME, "quick", tmp_path, seeds=[1, 1])
    with pytest.raises(SpecError, match="unknown study"):
        run_study("dormnat", "quick", tmp_path)
    assert not list(tmp_path.iterdir())
