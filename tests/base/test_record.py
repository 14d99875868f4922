"""Files are whole or not there, addresses follow content, and errors survive the way between processes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest

from expunge.base import record
from expunge.base.errors import ExpungeError, GateFailed, MissingError, RunError, SpecError, nearest, unknown
from expunge.base.record import (
    address,
    copy_file,
    rows_to_text,
    spelled,
    storage_error,
    sweep,
    write_file,
)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# Files


@pytest.mark.parametrize("content", [b"", b"\x00\xff", "text", "ä"])
def test_a_file_holds_what_was_written_and_its_folder_is_made(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "a" / "b.txt"
    write_file(path, "before")
    write_file(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert names(tmp_path) == {"a", "a/b.txt"}


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=["full", "interrupted"])
def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    path = tmp_path / "a.txt"
    write_file(path, "before")
    monkeypatch.setattr(os, failing, fail)
    with pytest.raises((RunError, KeyboardInterrupt)):
        write_file(path, "after")
    monkeypatch.undo()
    assert path.read_text() == "before" and names(tmp_path) == {"a.txt"}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EIO])
def test_a_failed_write_says_where_and_what_to_do(code: int) -> None:
    error = storage_error(OSError(code, os.strerror(code)), Path("runs/a"))
    assert error.exit_code == 4 and str(error).startswith("runs/a: ") and error.finding and error.remedy


@pytest.mark.parametrize("below", ["a.txt", "folder/a.txt"])
def test_a_file_in_the_way_of_a_folder_is_named_and_kept(tmp_path: Path, below: str) -> None:
    (tmp_path / "way").write_text("mine")
    with pytest.raises(RunError, match="a file is in the way of the folder"):
        write_file(tmp_path / "way" / below, "x")
    assert names(tmp_path) == {"way"} and (tmp_path / "way").read_text() == "mine"


@pytest.mark.parametrize("before", [None, b"old", b"new", "link"])
def test_a_copy_shares_nothing_with_its_source(tmp_path: Path, before: bytes | str | None) -> None:
    source, target = tmp_path / "source", tmp_path / "folder" / "target"
    source.write_bytes(b"new")
    if before is not None:
        target.parent.mkdir()
        target.hardlink_to(source) if before == "link" else target.write_bytes(before)  # type: ignore[arg-type]
    assert copy_file(source, target) == record.file_digest(source)
    assert target.read_bytes() == b"new" and target.stat().st_nlink == 1 and not source.samefile(target)
    target.write_bytes(b"edited")
    assert source.read_bytes() == b"new" and names(tmp_path) == {"source", "folder", "folder/target"}


@pytest.mark.parametrize(
    "what", ["nothing", "below a file", "too long a name", "a file without rights", "a folder without rights"]
)
def test_what_cannot_be_removed_stays_and_is_no_error(tmp_path: Path, what: str) -> None:
    """The clean-up after a failed write must not hide why it failed."""
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "file").write_text("mine")
    paths = {"nothing": "none", "below a file": "closed/file/x", "too long a name": "x" * 300}
    path = tmp_path / paths.get(what, "closed/file" if what == "a file without rights" else "closed/folder")
    if what == "a folder without rights":
        path.mkdir()
    before = names(tmp_path)
    closed.chmod(0o000 if "rights" in what else 0o700)
    root = os.getuid() == 0
    if root and "rights" in what:
        os.seteuid(65534)
    try:
        record.remove(path)
    finally:
        if root:
            os.seteuid(0)
        closed.chmod(0o700)
    assert (closed / "file").read_text() == "mine" and names(tmp_path) == before


SEALED = {"a": float("nan"), "b": {10: [1e-7, 2**70], 9: None}, "c": Path("x"), "ä": "\ud800"}


def test_a_sealed_table_comes_back_as_json_has_it() -> None:
    table = {key: value for key, value in SEALED.items() if key != "a"}
    assert record.unsealed(record.sealed(table).encode()) == {
        "b": {"10": [1e-7, 2**70], "9": None},
        "c": "x",
        "ä": "\ud800",
    }
    assert record.canonical(record.unsealed(record.sealed(SEALED).encode())).count("NaN") == 1


@pytest.mark.parametrize("change", [("1e-07", "2e-07"), ("null", "0"), ('"x"', '"y"'), ("}", ',"d":1}'), ("{", "[")])
def test_a_sealed_table_that_was_changed_is_refused(change: tuple[str, str]) -> None:
    text = record.sealed(SEALED)
    assert text.replace(*change, 1) != text
    with pytest.raises(ValueError):
        record.unsealed(text.replace(*change, 1).encode())


TEMPORARY = ".a.txt.0123456789abcdef.tmp"


OF_OTHERS = {
    "a live file, by a clock of next week": (TEMPORARY, 0.0, 7.0),
    "a live file, by a clock of last week": (TEMPORARY, 0.0, -7.0),
    "an old file of another program": (".bashrc.tmp", 9.0, 0.0),
    "another old file of another program": (".a.swp.tmp", 9.0, 0.0),
    "an old file with a plain name": ("a.txt", 9.0, 0.0),
}


@pytest.mark.parametrize("what", OF_OTHERS)
def test_a_sweep_removes_only_abandoned_temporaries(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, days, ahead = OF_OTHERS[what]
    abandoned, other = tmp_path / TEMPORARY.replace("a.txt", "b"), tmp_path / name
    for path, age in ((abandoned, 2.0), (other, days)):
        path.write_text("mine")
        os.utime(path, (time.time() - age * 86400,) * 2)
    # On a network disk, this host's clock is not the one that stamps files.
    now = time.time() + ahead * 86400
    monkeypatch.setattr(time, "time", lambda: now)
    sweep(tmp_path)
    assert names(tmp_path) == {name}


@pytest.mark.parametrize("holder", ["stopped", "working", "killed"])
def test_a_lock_of_another_process_is_no_hang(holder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was stopped while it wrote keeps its lock; one that ended does not."""
    monkeypatch.setattr(record, "PATIENCE", 0.3 if holder == "stopped" else 20.0)
    code = "import fcntl, os, sys, time; h = os.open(sys.argv[1], os.O_RDONLY); fcntl.flock(h, fcntl.LOCK_EX)"
    code += "; print(1, flush=True); time.sleep(0.5 if sys.argv[2] == 'working' else 60)"
    with subprocess.Popen([sys.executable, "-c", code, tmp_path, holder], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        if holder == "killed":
            process.kill()
        try:
            raised = (
                pytest.raises(RunError, match="another process") if holder == "stopped" else contextlib.nullcontext()
            )
            with raised, record.locked(tmp_path):
                pass
        finally:
            process.kill()


# Text


def test_numbers_that_json_cannot_hold_are_spelled_at_any_depth() -> None:
    row = {
        "a": float("nan"),
        "b": [float("inf"), {"c": (-float("inf"), 1.0)}],
        "d": "NaN",
        "e": None,
        "f": True,
        "g": 3,
    }
    [line] = rows_to_text([row]).splitlines()
    expected = {"a": "NaN", "b": ["Infinity", {"c": ["-Infinity", 1.0]}], "d": "NaN", "e": None, "f": True, "g": 3}
    assert json.loads(line) == expected == spelled(row)
    assert rows_to_text([]) == ""


def test_the_same_value_has_the_same_address() -> None:
    assert address({"a": 1, "b": [1, {"c": None}]}) == address({"b": [1, {"c": None}], "a": 1})
    assert len(address({})) == 32 and set(address({})) <= set("0123456789abcdef")
    values = [None, 0, 1, 1.5, True, "1", "", [], {}, [1], ["1"], {"a": 1}, {"a": "1"}, [[]], {"a": {}}]
    assert len({address(value) for value in values}) == len(values)


# Errors


@pytest.mark.parametrize(
    ("kind", "code"), [(GateFailed, 1), (SpecError, 2), (MissingError, 3), (RunError, 4), (ExpungeError, 4)]
)
def test_an_error_has_its_code_and_survives_pickling(kind: type[ExpungeError], code: int) -> None:
    error = kind("found 3", where="train.epochs", allowed="1", remedy="lower it")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and again.exit_code == code
    assert str(again) == str(error) == "train.epochs: found 3; allowed: 1; lower it"
    assert str(error.at("spec")) == "spec.train.epochs: found 3; allowed: 1; lower it"
    assert type(error.at("spec")) is kind


def test_a_message_has_only_the_parts_that_there_are() -> None:
    assert str(RunError("it broke")) == "it broke"
    assert str(RunError("it broke", remedy="mend it")) == "it broke; mend it"
    assert RunError("it broke").at("here").where == "here"


def test_the_nearest_name_is_offered_where_one_is_near() -> None:
    assert nearest("epohcs", ["epochs", "batch_size"]) == "did you mean 'epochs'?"
    assert nearest("zzz", ["epochs", "batch_size"]) == ""
    error = unknown("key", "epohcs", ["epochs", "batch_size"], where="train")
    assert str(error) == "train: unknown key 'epohcs'; allowed: batch_size, epochs; did you mean 'epochs'?"
    assert unknown("key", "a", [], where="train").allowed == "none"
