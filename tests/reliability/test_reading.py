"""Files of somebody else's folder are opened without following what is put in their way at the last moment."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _within import within

from expunge.base.errors import RunError
from expunge.base.reading import append_inside, read_inside


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A record with a file in a folder, and the same names elsewhere."""
    for name in ("record", "outside"):
        (tmp_path / name / "scores" / "deep").mkdir(parents=True)
        for file in ("scores/a", "scores/deep/a", "a"):
            (tmp_path / name / file).write_text(name)
    return tmp_path / "record"


def linked(folder: Path, name: str) -> None:
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(folder.parent / "outside" / name)


def piped(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)


SWAPS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "its folder becomes a link": ("scores/a", lambda folder: linked(folder, "scores")),
    "an outer folder becomes a link": ("scores/deep/a", lambda folder: linked(folder, "scores")),
    "an inner folder becomes a link": ("scores/deep/a", lambda folder: linked(folder, "scores/deep")),
    "the file becomes a link": ("a", lambda folder: linked(folder, "a")),
    "the file becomes a pipe": ("a", lambda folder: piped(folder, "a")),
}


@pytest.mark.parametrize("swap", SWAPS)
def test_nothing_elsewhere_is_read_whenever_the_way_changes(
    swap: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way changes between the look at the file and its opening."""
    name, change = SWAPS[swap]
    opening, outside = os.open, []

    def late(path: Any, flags: int, *arguments: Any, **keywords: Any) -> int:
        if Path(path).name == Path(name).name:
            monkeypatch.setattr(os, "open", opening)
            change(folder)
        return opening(path, flags, *arguments, **keywords)

    monkeypatch.setattr(os, "open", late)
    with within(5):
        try:
            content = read_inside(folder, name)
            outside = [content] if content == b"outside" else []
        except RunError:
            pass
    assert outside == []


@pytest.mark.parametrize("what", ["hard link", "hard link of a long file", "two hard links"])
def test_a_line_is_never_appended_to_a_file_with_another_name(what: str, tmp_path: Path) -> None:
    mine, folder = tmp_path / "mine", tmp_path / "record"
    folder.mkdir()
    mine.write_text("mine\n" * (10_000 if "long" in what else 1))
    before = mine.read_text()
    os.link(mine, folder / "events.jsonl")
    if what == "two hard links":
        os.link(mine, folder / "other")
    for _ in range(2):
        append_inside(folder, "events.jsonl", "line\n")
    assert mine.read_text() == before
    assert (folder / "events.jsonl").read_text() == before + "line\nline\n"
