"""The store of outputs: complete or absent, checked when it is read, never written over."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from expunge.base.errors import RunError
from expunge.base.record import file_digest
from expunge.base.store import Store

KEY = "0" * 32
FACTS = {"stage": "a", "seconds": 1.5, "gradients": 3}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = Store(tmp_path / "cache")
    opened.open()
    return opened


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_stage_is_there_with_its_files_and_facts(store: Store) -> None:
    assert not store.has(KEY)
    store.put(KEY, {"a.bin": b"abc"}, FACTS)
    assert store.has(KEY) and store.path(KEY, "a.bin").read_bytes() == b"abc"
    assert store.facts(KEY).items() >= FACTS.items()
    assert store.digest(KEY, "a.bin") == file_digest(store.path(KEY, "a.bin"))
    assert names(store.root) == {KEY, f"{KEY}/a.bin", f"{KEY}/stage.json"}


def test_a_stage_that_is_there_is_never_written_over(store: Store) -> None:
    store.put(KEY, {"a.bin": b"first"}, FACTS)
    store.put(KEY, {"a.bin": b"second"}, FACTS)
    assert store.path(KEY, "a.bin").read_bytes() == b"first"
    assert names(store.root) == {KEY, f"{KEY}/a.bin", f"{KEY}/stage.json"}


def test_two_runs_that_finish_a_stage_at_once_are_both_content(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.replace

    def late(source: Path, target: Path) -> None:
        # Another process is quicker between the look and the renaming of the folder.
        if Path(target) == store.root / KEY:
            shutil.copytree(source, target)
        real(source, target)

    monkeypatch.setattr(os, "replace", late)
    store.put(KEY, {"a.bin": b"abc"}, FACTS)
    assert store.has(KEY) and names(store.root) == {KEY, f"{KEY}/a.bin", f"{KEY}/stage.json"}


@pytest.mark.parametrize("moment", range(5))
def test_a_stage_that_cannot_be_written_is_not_there(
    store: Store, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    real, calls = os.replace, iter(range(100))

    def fail(source: Path, target: Path) -> None:
        if next(calls) == moment:
            raise OSError(errno.ENOSPC, "full")
        real(source, target)

    monkeypatch.setattr(os, "replace", fail)
    files = {"a.bin": b"a", "b.bin": b"b", "c.bin": b"c"}
    with pytest.raises(RunError, match=r"the disk is full.*free some space"):
        store.put(KEY, files, FACTS)
    assert not store.has(KEY) and names(store.root) == set()
    store.put(KEY, files, FACTS)
    assert store.has(KEY)


def test_a_changed_file_is_not_what_the_stage_wrote(store: Store) -> None:
    store.put(KEY, {"a.bin": b"abc"}, FACTS)
    store.path(KEY, "a.bin").write_bytes(b"abd")
    with pytest.raises(RunError, match=f"{KEY}/a.bin: .*changed.*run the same again"):
        store.read(KEY, "a.bin")
    with pytest.raises(RunError, match=f"{KEY}/a.bin: .*changed.*run the same again"):
        store.keep(KEY, "a.bin", store.root.parent / "kept")
    assert not (store.root.parent / "kept").exists()
