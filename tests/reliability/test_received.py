"""A record that somebody else may have written: nothing in it is believed, no file elsewhere is read or changed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _within import within
from safetensors.numpy import save

from expunge.evidence import scores
from helpers import Table, cli, finished, run, tiny, write_spec

Change = Callable[[Path], None]


METHODS = [{"name": "random_relabel", "epochs": 1}, {"name": "finetune", "epochs": 1}]
SAMPLE: Table = {"method": METHODS, "diagnostic": [{"name": "recommendation"}], "gallery": True, "train": {"epochs": 2}}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a diagnosis and a gallery, which no test changes."""
    out = tmp_path_factory.mktemp("received") / "runs"
    finished(run(tiny(**SAMPLE), out))
    return out / "tiny"


@pytest.fixture
def record(sample: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "in" / "tiny"
    shutil.copytree(sample, folder)
    return folder


READERS: dict[str, Callable[[Path, Path], list[object]]] = {
    "verify": lambda folder, sample: ["verify", folder],
    "report": lambda folder, sample: ["report", folder],
    "leaderboard": lambda folder, sample: ["report", "--leaderboard", folder],
    "compare": lambda folder, sample: ["compare", sample, folder, "--out", folder.parent / "compare.html"],
}


def refused(reader: str, folder: Path, sample: Path, *words: str) -> str:
    """The reader ends with one message and exit code 4."""
    with within(60):
        result = cli(*READERS[reader](folder, sample))
    assert "Traceback" not in result.err and result.code == 4, (result.code, result.err[-2000:], result.out[-500:])
    assert all(word in result.err for word in words), result.err
    return result.err


def table_of(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def rewrite(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Change a JSON file and make its digest in the manifest fit, as a forger would."""
    table = table_of(folder, name)
    (folder / name).write_text(json.dumps(change(table) or table))
    if name != "manifest.json":
        fit(folder, name)


def fit(folder: Path, *names: str) -> None:
    manifest = table_of(folder, "manifest.json")
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    manifest["files"] |= {name: digest for name, digest in digests.items() if name in manifest["files"]}
    for file in (file for stage in manifest["stages"] for file in stage["files"].values()):
        file["sha256"] = digests.get(file["path"], file["sha256"])
    (folder / "manifest.json").write_text(json.dumps(manifest))


def path_of(folder: Path, kind: str) -> str:
    """The first file in a folder of the record."""
    return str(
        next(s["files"][kind]["path"] for s in table_of(folder, "manifest.json")["stages"] if kind in s["files"])
    )


def erased(folder: Path) -> None:
    path = folder / "verdicts.json"
    path.write_text(path.read_text().replace('"inconclusive"', '"erased"').replace('"incomplete"', '"erased"'))


def forged_residual(folder: Path) -> None:
    rewrite(folder, "verdicts.json", lambda verdicts: verdicts[0]["audits"][0].update(residual=-0.5))


def forged_flags(folder: Path) -> None:
    rewrite(folder, "verdicts.json", lambda verdicts: verdicts[0].update(flags=["equivalent"]))


def lost_verdict(folder: Path) -> None:
    rewrite(folder, "verdicts.json", lambda verdicts: verdicts[:-1])


def forged_row(folder: Path) -> None:
    path = folder / "results.jsonl"
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | {"value": 0.123}), *others]) + "\n")
    fit(folder, "results.jsonl")


def other_scores(folder: Path) -> None:
    name = path_of(folder, "scores")
    held = scores.loads((folder / name).read_bytes())
    changed = [scores.Scores(**{**vars(entry), "values": entry.values[::-1] * 0}) for entry in held]
    (folder / name).write_bytes(scores.dumps(changed))
    fit(folder, name)


FORGERIES: dict[str, tuple[Change, str]] = {
    "a verdict": (erased, "verdicts.json"),
    "a verdict with its digest": (lambda folder: (erased(folder), fit(folder, "verdicts.json"))[0], "verdicts.json"),
    "a number of an audit": (forged_residual, "verdicts.json"),
    "the flags": (forged_flags, "verdicts.json"),
    "a verdict that is left out": (lost_verdict, "verdicts.json"),
    "a row": (forged_row, "results.jsonl"),
    "scores": (other_scores, "results.jsonl"),
}


@pytest.mark.parametrize("reader", ["report", "leaderboard", "compare"])
@pytest.mark.parametrize("forgery", FORGERIES)
def test_no_reader_believes_a_written_result(forgery: str, reader: str, record: Path, sample: Path) -> None:
    change, name = FORGERIES[forgery]
    change(record)
    refused(reader, record, sample, name)


def test_words_of_a_verdict_are_not_taken_from_the_record(record: Path) -> None:
    words = "proved by the authors to be gone"
    rewrite(
        record, "verdicts.json", lambda verdicts: [verdict.update(reasons=[words]) for verdict in verdicts] and None
    )
    finished(cli("report", record))
    assert words not in (record / "report.html").read_text()


def renamed(where: str) -> Change:
    """The manifest names another path for the first file of scores."""

    def change(folder: Path) -> None:
        manifest = table_of(folder, "manifest.json")
        file = next(stage["files"]["scores"] for stage in manifest["stages"] if "scores" in stage["files"])
        outside = folder.parent / "outside.safetensors"
        shutil.copy(folder / file["path"], outside)
        file["path"] = where.format(outside=outside, path=file["path"])
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return change


def replaced(kind: str, make: Callable[[Path, Path], object]) -> Change:
    """A file of the record is replaced by something else; `make` gets its path and a copy of it elsewhere."""

    def change(folder: Path) -> None:
        path = folder / (path_of(folder, kind) if "." not in kind else kind)
        outside = folder.parent / f"outside{path.suffix}"
        shutil.copy(path, outside)
        path.unlink()
        make(path, outside)

    return change


def linked_folder(folder: Path) -> None:
    shutil.move(folder / "scores", folder.parent / "elsewhere")
    (folder / "scores").symlink_to(folder.parent / "elsewhere")


def listening(path: Path, _: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket may have about 100 letters
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
    finally:
        os.chdir(here)


OUTSIDE: dict[str, Change] = {
    "an absolute path": renamed("{outside}"),
    "a path above the folder": renamed("../outside.safetensors"),
    "a path through a folder above": renamed("scores/../../outside.safetensors"),
    "a path with a zero byte": renamed("{path}\0"),
    "half a character": renamed("{path}\ud800"),
    "an empty path": renamed(""),
    "the folder itself": renamed("scores"),
    "a link to a file elsewhere": replaced("scores", lambda path, outside: path.symlink_to(outside)),
    "a link to the verdicts": replaced("verdicts.json", lambda path, outside: path.symlink_to(outside)),
    "a link to a folder elsewhere": linked_folder,
    "a link to a device": replaced("curves", lambda path, outside: path.symlink_to("/dev/zero")),
    "a pipe for the spec": replaced("spec.json", lambda path, _: os.mkfifo(path)),
    "a pipe for the manifest": replaced("manifest.json", lambda path, _: os.mkfifo(path)),
    "a pipe for scores": replaced("scores", lambda path, _: os.mkfifo(path)),
    "a pipe for curves": replaced("curves", lambda path, _: os.mkfifo(path)),
    "a pipe for rows": replaced("results.jsonl", lambda path, _: os.mkfifo(path)),
    "a folder for the environment": replaced("env.json", lambda path, _: path.mkdir()),
    "a socket for the diagnosis": replaced("diagnosis.json", listening),
}


@pytest.mark.parametrize("change", OUTSIDE)
def test_only_regular_files_inside_the_folder_are_read(change: str, record: Path, sample: Path) -> None:
    OUTSIDE[change](record)
    for reader in ("verify", "report"):
        err = refused(reader, record, sample)
        assert "SHA-256 is" not in err


@pytest.mark.parametrize("name", ["temporary name of the page", "events.jsonl", "scores", "curves", "models"])
def test_no_file_elsewhere_is_changed_through_a_planted_link(name: str, record: Path, tmp_path: Path) -> None:
    """The issue plants the temporary name of the page; others plant what a rerun writes."""
    outside = tmp_path / "mine"
    outside.mkdir()
    kept = outside / "kept.txt"
    kept.write_text("mine")
    if name == "temporary name of the page":
        (record / f".report.html.{os.getpid()}.tmp").symlink_to(kept)
    elif name in ("scores", "curves", "models"):
        shutil.rmtree(record / name)
        (record / name).symlink_to(outside)
    else:
        (record / name).unlink(missing_ok=True)
        (record / name).symlink_to(kept)
    before = sorted(path.name for path in outside.iterdir())
    cli("report", record)
    # A rerun with one method less is allowed in this folder.
    cli("run", write_spec(tmp_path, tiny(**SAMPLE | {"method": METHODS[:1]})), "--out", record.parent, "--workers", 1)
    assert kept.read_text() == "mine"
    assert sorted(path.name for path in outside.iterdir()) == before


def setting(name: str, change: Callable[[Any], Any]) -> Change:
    return lambda folder: rewrite(folder, name, change)


def whole(name: str, text: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_text(text)
        fit(folder, name)

    return change


def other_curve(folder: Path) -> None:
    name = path_of(folder, "curves")
    (folder / name).write_bytes(save({"steps": np.zeros((2, 2)), "values": np.zeros(3)}))
    fit(folder, name)


def deep_scores(folder: Path) -> None:
    name = path_of(folder, "scores")
    header = json.dumps({"__metadata__": {"expunge": "[" * 50_000}}).encode()
    (folder / name).write_bytes(len(header).to_bytes(8, "little") + header)
    fit(folder, name)


def without_digest(folder: Path) -> None:
    rewrite(folder, "manifest.json", lambda manifest: manifest["files"].pop("spec.json") and None)


CONTRADICTIONS: dict[str, Change] = {
    "a spec that is a list": whole("spec.json", "[]"),
    "an environment that is a list": whole("env.json", "[1]"),
    "no digest of the spec": without_digest,
    "a deep spec": whole("spec.json", '{"data":' * 20_000),
    "verdicts that are a table": whole("verdicts.json", "{}"),
    "curves of another shape": other_curve,
    "deep scores": deep_scores,
    "a model that no stage has": setting("manifest.json", lambda m: m["models"].append("nothing")),
    "no models": setting("manifest.json", lambda m: m.update(models=[])),
    "no seeds": setting("manifest.json", lambda m: m.update(seeds=[])),
    "other attacks": setting("manifest.json", lambda m: m.update(attacks=["nothing"])),
    "endless combinations": setting("manifest.json", lambda m: m.update(models=["a"] * 3000, seeds=[*range(3000)])),
    "a label with a line break": setting("manifest.json", lambda m: m.update(models=[*m["models"], "a\n| b |"])),
    "a huge seed": setting("manifest.json", lambda m: m["stages"][0].update(seed=2**70)),
    "a diagnosis that is a number": whole("diagnosis.json", "[3]"),
    "a diagnosis without rows": whole("diagnosis.json", '[{"diagnostic": "a"}]'),
}


@pytest.mark.parametrize("change", CONTRADICTIONS)
def test_a_record_that_contradicts_itself_ends_in_one_message(change: str, record: Path, sample: Path) -> None:
    """All digests fit, so only the content shows that nobody ran this."""
    CONTRADICTIONS[change](record)
    refused("report", record, sample)


CONTROLS = {
    "the spec's name": ("spec.json", lambda spec: spec.update(name="a\x1b]0;owned\x07b")),
    "the name of a task": ("spec.json", lambda spec: spec["forget"].update(name="\x1b[2Jgone")),
    "a carriage return": ("spec.json", lambda spec: spec.update(name="bad\rgood")),
    "a change of direction": ("spec.json", lambda spec: spec.update(name="a\u202eb")),
    "a control of eight bits": ("spec.json", lambda spec: spec["data"].update(name="\x9b31m")),
    "a row": ("manifest.json", lambda manifest: manifest["files"].update({"\x1b[31m.json": "0"})),
    "a model": ("manifest.json", lambda manifest: manifest.update(models=[*manifest["models"], "\x1b[31m"])),
    "a key": ("manifest.json", lambda manifest: manifest.update({"\x1b[31mkey": 1})),
}


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("place", CONTROLS)
def test_no_control_code_of_a_record_reaches_the_terminal(
    place: str, record: Path, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is no terminal gets no control codes from click, whoever sent them.
    monkeypatch.setattr("helpers.io.StringIO", Terminal)
    rewrite(record, CONTROLS[place][0], CONTROLS[place][1])
    for reader in READERS.values():
        with within(60):
            result = cli(*reader(record, sample))
        shown = (result.out + result.err).replace("\n", "")
        assert "Traceback" not in shown
        assert shown.isprintable(), [c for c in shown if not c.isprintable()]


@pytest.mark.parametrize("text", ["a\n| b |", "a\r\n| x | y | z | erased |", "a\x0bb", "a\x85b", "a\u2028b"])
def test_a_name_adds_no_line_to_the_leaderboard(text: str, record: Path) -> None:
    rewrite(record, "spec.json", lambda spec: spec.update(name=text))
    lines = finished(cli("report", "--leaderboard", record)).out.splitlines()
    assert len(lines) == 6


@pytest.mark.parametrize(
    ("encoding", "name", "reader"),
    [
        ("iso8859-5:strict", "plain", "leaderboard"),
        ("cp1250:strict", "\u4e2d", "verify"),
        ("latin-1:strict", "\u4e2d", "report"),
        ("utf-8:strict", "\udcff", "verify"),
    ],
)
def test_what_the_terminal_cannot_show_keeps_the_exit_code(
    encoding: str, name: str, reader: str, record: Path, sample: Path
) -> None:
    folder = record.rename(record.parent / name)
    arguments = [os.fsencode(str(word)) for word in READERS[reader](folder, sample)]
    command = [sys.executable, "-c", "from expunge.cli import main\nmain()", *arguments]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}, timeout=60)
    assert done.returncode == 0, done.stderr
